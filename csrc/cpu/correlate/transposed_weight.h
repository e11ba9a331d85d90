// A copy of a weight in which neighbouring channels adjoin, for correlations by the positions engine.
//
// In an input gradient the channels of a correlation are the outermost axis of the weight, pages apart; but for each of
// them all rows and taps lie in a line. So this copy is the transpose of a matrix, and every phase of the gradient
// reads its taps from it where they lie. A gradient of a single phase and few positions needs none
// (correlate_transposed.cpp).
#pragma once

#include <optional>

#include "problem/correlation.h"

namespace unfoldconv::cpu {

template <int Rank>
struct TurnedWeight {
  Tensor memory;
  Planes<Rank> planes;
  int64_t bytes;
};

// Nothing if that engine is not to compute it, or is faster with the weight as it is. `weight` is (group, row,
// channel), `image` what it is correlated with, and `geometry` that of the convolution whose input gradient it is.
template <int Rank>
std::optional<TurnedWeight<Rank>> turned_weight(const Planes<Rank>& weight, const Geometry<Rank>& geometry,
                                                const Planes<Rank>& image, const Tensor& like);

}  // namespace unfoldconv::cpu
