// A copy of a weight in which channels are neighbours in memory, for the correlations of an input gradient.
//
// In an input gradient the channels of a correlation are the outermost axis of the weight, pages apart; but for each of
// them all rows and taps lie in a line. So this copy is the transpose of a matrix, and every phase of the gradient
// reads its taps from it where they lie. A gradient of a single phase and few positions needs none
// (correlate_transposed.cpp).
#pragma once

#include <optional>

#include "problem/correlation.h"

namespace unfoldconv::cpu {

struct TransposedWeight {
  Planes<3> planes;  // without memory
  int64_t bytes;     // that they take
};

// Nothing where engines are faster with the weight as it is.
std::optional<TransposedWeight> plan_transposed_weight(const InputGrad<3>& problem);

// Makes the copy in so many bytes of memory, and returns its planes.
Planes<3> transpose_weight(const InputGrad<3>& problem, const TransposedWeight& plan, char* memory);

}  // namespace unfoldconv::cpu
