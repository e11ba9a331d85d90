// The engine "stem": convolution on CUDA of one to four channels and one group, by kernels of its own (cuda/stem.h).
#pragma once

#include "problem/planes.h"
#include "runtime/place.h"

namespace unfoldconv {

// Each computes what the function of convolution.h without `stem_` does, or returns false: on a CPU, for other dtypes,
// more channels or groups, where another engine is forced, and where a window does not fit into shared memory.
template <int Rank>
bool stem_conv(const Place& place, const Tensor& input, const Tensor& weight, const Bias& bias,
               const Geometry<Rank>& geometry, int64_t groups, Tensor& output);
template <int Rank>
bool stem_weight_grad(const Place& place, const Tensor& grad_output, const Tensor& input,
                      const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_weight);

}  // namespace unfoldconv
