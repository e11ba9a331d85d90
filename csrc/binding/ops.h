// The ops that are called in two ways: with lists of numbers (ops.cpp), and with packed windows (packed.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "binding/checks.h"

namespace unfoldconv {

// Shapes as in convolution.h; sizes and windows have one number per spatial axis.
Tensor conv_op(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, Numbers stride,
               Numbers padding_low, Numbers padding_high, Numbers dilation, int64_t groups);
Tensor conv_input_grad_op(const Tensor& grad_output, const Tensor& weight, const std::optional<Tensor>& bias,
                          Numbers input_size, Numbers stride, Numbers padding_low, Numbers padding_high,
                          Numbers dilation, int64_t groups);
Tensor conv_weight_grad_op(const Tensor& grad_output, const Tensor& input, Numbers kernel_size, Numbers stride,
                           Numbers padding_low, Numbers padding_high, Numbers dilation, int64_t groups);

}  // namespace unfoldconv
