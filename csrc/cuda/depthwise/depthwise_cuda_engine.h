// The direct engine: convolution on CUDA with one or a few channels per group, by kernels of its own
// (cuda/depthwise.h). With one channel per group it goes by the name of "depthwise", with more by that of "grouped".
#pragma once

#include "problem/planes.h"
#include "runtime/place.h"

namespace unfoldconv {

// Each computes what the function of convolution.h without `direct_` does, or returns false: on a CPU, for other dtypes
// or more channels, where another engine is forced, and where a window does not fit into shared memory.
template <int Rank>
bool direct_conv(const Place& place, const Tensor& input, const Tensor& weight, const Bias& bias,
                 const Geometry<Rank>& geometry, int64_t groups, Tensor& output);
template <int Rank>
bool direct_input_grad(const Place& place, const Tensor& grad_output, const Tensor& weight, const Bias& bias,
                       const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_input);
template <int Rank>
bool direct_weight_grad(const Place& place, const Tensor& grad_output, const Tensor& input,
                        const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_weight);

}  // namespace unfoldconv
