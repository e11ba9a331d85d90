// The three convolutions over checked operands. They fill a result that the caller has allocated.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "problem/planes.h"
#include "runtime/place.h"

namespace unfoldconv {

using torch::stable::Tensor;

// input [batch, C_in, *image], weight [C_out, C_in / groups, *kernel], bias [C_out], output [batch, C_out, *positions].
template <int Rank>
void conv(const Place& place, const Tensor& input, const Tensor& weight, const Bias& bias,
          const Geometry<Rank>& geometry, int64_t groups, Tensor& output);

// grad_output [batch, C_out, *positions], weight as above, bias [C_in], grad_input [batch, C_in, *image].
template <int Rank>
void conv_input_grad(const Place& place, const Tensor& grad_output, const Tensor& weight, const Bias& bias,
                     const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_input);

// grad_output and input as above; grad_weight [C_out, C_in / groups, *kernel], contiguous.
// The caller fills grad_weight with zeros where batch is 0.
template <int Rank>
void conv_weight_grad(const Place& place, const Tensor& grad_output, const Tensor& input,
                      const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_weight);

}  // namespace unfoldconv
