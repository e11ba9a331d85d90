// The ops that are called in two ways: with lists of numbers (ops.cpp), and with packed windows (packed.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "checks.h"

namespace unfoldconv {

// Shapes as in convolution.h; sizes and windows have one number per spatial axis.
Tensor conv_op(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Sizes& stride,
               const Sizes& padding_low, const Sizes& padding_high, const Sizes& dilation, int64_t groups);
Tensor conv_input_grad_op(const Tensor& grad_output, const Tensor& weight, const std::optional<Tensor>& bias,
                          const Sizes& input_size, const Sizes& stride, const Sizes& padding_low,
                          const Sizes& padding_high, const Sizes& dilation, int64_t groups);
Tensor conv_weight_grad_op(const Tensor& grad_output, const Tensor& input, const Sizes& kernel_size,
                           const Sizes& stride, const Sizes& padding_low, const Sizes& padding_high,
                           const Sizes& dilation, int64_t groups);

}  // namespace unfoldconv
