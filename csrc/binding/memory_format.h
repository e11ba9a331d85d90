// In which memory format a convolution's result is. The fake kernels follow it (unfoldconv/_conv_ops.py).
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <span>

#include "problem/scalar.h"
#include "runtime/allocation.h"

namespace unfoldconv {

// Whether torch would call the strides channels_last (`suggest_memory_format`): channels innermost, the batch
// outermost, and not contiguous as well.
inline bool is_channels_last(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t dim = static_cast<int64_t>(sizes.size());
  if (dim < 4 || strides[1] == 0) return false;
  int64_t least = 0;
  const auto fits = [&](int64_t d) {
    if (sizes[d] == 0 || strides[d] < least || (d == 0 && least == strides[1])) return false;
    least = strides[d] * std::max<int64_t>(1, sizes[d]);
    return true;
  };
  if (!fits(1)) return false;
  for (int64_t d = dim - 1; d >= 2; --d)
    if (!fits(d)) return false;
  return fits(0);
}

// A convolution's result has the memory format that torch's own op returns: channels_last if one of the operands is,
// except where torch has no such path (3-D in float64 and the integers; float64 on CUDA).
inline Tensor empty_result(std::span<const int64_t> sizes, const Tensor& first, const Tensor& second) {
  const ScalarType dtype = first.scalar_type();
  bool channels_last = is_channels_last(first) || is_channels_last(second);
  const bool has_3d = is_16bit_float(dtype) || dtype == ScalarType::Float || dtype == ScalarType::ComplexFloat ||
                      dtype == ScalarType::ComplexDouble;
  if (sizes.size() == 5 && !has_3d) channels_last = false;
  if (first.is_cuda() && dtype == ScalarType::Double) channels_last = false;
  return empty_tensor(first, channels_last ? channels_last_extents(sizes) : contiguous_extents(sizes), dtype);
}

}  // namespace unfoldconv
