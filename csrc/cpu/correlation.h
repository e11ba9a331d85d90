// Correlations on the CPU without a matrix of columns: an implicit matrix product on the micro-kernel of
// tile_kernels.h.
//
// Two engines share the micro-kernel. One has positions in the lanes of a vector: patches are gathered into a panel
// [terms, positions] in cache, and weights are broadcast. The other has output channels there: weights are packed as
// panels [terms, channels] once, and patches are broadcast from where they lie; it wants neighbouring channels to be
// neighbours in memory (channels_last). Either sums an element of the output in the same order whatever the batch, the
// position in it, and the number of threads.
#pragma once

#include "../correlation.h"

namespace unfoldconv::cpu {

// Runs the better of the two engines. Returns false, having done nothing, where neither takes the problem, by its dtype
// or its size.
template <int Rank>
bool correlate(const Correlation<Rank>& problem);

// The engines.

bool correlate_positions(const Correlation<3>& problem);

bool correlate_channels(const Correlation<3>& problem);

}  // namespace unfoldconv::cpu
