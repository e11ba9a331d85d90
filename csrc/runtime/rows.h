// Walks a run of positions as pieces of rows (runs along the last axis).
#pragma once

#include <algorithm>

#include "problem/geometry.h"
#include "problem/integer_math.h"

namespace unfoldconv::cpu {

// Calls f(index, length) for each piece of a row: `index` is the multi-index of its first position, `length` how many
// positions follow along the last axis. The pieces come in row-major order.
template <int Rank, class F>
void for_each_row(PositionRange range, const int64_t (&sizes)[Rank], F&& f) {
  constexpr int last = Rank - 1;
  int64_t index[Rank];
  unravel<Rank>(range.first, sizes, index);
  for (int64_t left = range.count; left > 0;) {
    const int64_t length = std::min(left, sizes[last] - index[last]);
    f(index, length);
    left -= length;
    index[last] = 0;
    for (int axis = last - 1; axis >= 0 && ++index[axis] == sizes[axis]; --axis) index[axis] = 0;
  }
}

}  // namespace unfoldconv::cpu
