// A copy of a weight in which neighbouring channels adjoin, for correlations by the positions engine.
//
// In an input gradient the channels of a correlation are the outermost axis of the weight, pages apart; but for each of
// them all rows and taps lie in a line. So this copy is the transpose of a matrix, and every phase of the gradient
// reads its taps from it where they lie.
#pragma once

#include <optional>

#include "../correlation.h"

namespace unfoldconv::cpu {

template <int Rank>
struct TurnedWeight {
  Tensor memory;
  Planes<Rank> planes;
  int64_t bytes;
};

// Nothing if that engine is not to compute it, or reads the weight as it is or in another order. `weight` is (group,
// row, channel), and `image` what it is correlated with.
template <int Rank>
std::optional<TurnedWeight<Rank>> turned_weight(const Planes<Rank>& weight, const int64_t (&kernel)[Rank],
                                                const Planes<Rank>& image, const Tensor& like);

}  // namespace unfoldconv::cpu
