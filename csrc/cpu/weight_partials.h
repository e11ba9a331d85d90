// The sums of a weight gradient that several tasks hold parts of.
#pragma once

#include "correlation_types.h"

namespace unfoldconv::cpu {

// Adds partial[split, numel] up in order, in place, and writes the dtype of the result.
template <class Terms>
void add_partials(const Terms& terms, typename Terms::Sum* partial, int64_t splits, int64_t numel,
                  typename Terms::From* result) {
  using Sum = typename Terms::Sum;
  parallel_over(numel, splits * sizeof(Sum), [&](int64_t begin, int64_t end) {
    for (int64_t split = 1; split < splits; ++split)
      for (int64_t i = begin; i < end; ++i) partial[i] += partial[split * numel + i];
    terms.pack.store(partial + begin, result + begin, 1, end - begin);
  });
}

}  // namespace unfoldconv::cpu
