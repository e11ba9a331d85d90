// The depthwise engine: direct convolution with one channel per group, or with 2, 4 or 8, on vectors of neighbouring
// channels, whole groups of them. (With more than one it goes by the name of "grouped".)
//
// A task gathers the box of the image that a box of results reads, for as many channels as a vector has lanes: into a
// buffer with the channels innermost, padded with zeros along the last axis, in the type that sums are in. So the sums
// (depthwise_sums.inl.h, grouped_vectors.inl.h) are the same for every memory format and dtype, and contiguous tensors
// are transposed as they are copied. Boxes are as large as the workspace limit and the cache allow. Small kernels of
// one channel per group over tensors with the channels innermost do without the copy (depthwise_in_place.h), which
// would take longer than their few products. The order of the terms of a sum follows from the geometry alone: results
// depend neither on threads nor, but for the weight gradient, on the batch.
#pragma once

#include <cstdint>

#include "problem/planes.h"
#include "runtime/place.h"

namespace unfoldconv::cpu {

// Whether the engine can compute a convolution or a gradient of it: groups of as many input as output channels, for
// which there are kernels, floating point, the channels or the last axis of both tensors innermost, and a window that
// is small enough for the buffers. With one channel per group, the weight must be contiguous too. A gradient takes its
// operands' layouts: `image` that of input or grad_input, `output` that of output or grad_output.
template <int Rank>
bool depthwise_takes(const Planes<Rank>& image, const Planes<Rank>& output, const Geometry<Rank>& geometry);

// As unfoldconv::conv, conv_input_grad and conv_weight_grad, for what depthwise_takes().
template <int Rank>
void depthwise_conv(const Tensor& input, const Tensor& weight, const Bias& bias, const Geometry<Rank>& geometry,
                    int64_t groups, Tensor& output);
template <int Rank>
void depthwise_input_grad(const Tensor& grad_output, const Tensor& weight, const Bias& bias,
                          const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_input);
template <int Rank>
void depthwise_weight_grad(const Tensor& grad_output, const Tensor& input, const Geometry<Rank>& geometry,
                           int64_t groups, Tensor& grad_weight);

}  // namespace unfoldconv::cpu
