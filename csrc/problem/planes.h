// Tensors as the kernels see them: a pointer and a layout of planes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "problem/geometry.h"
#include "problem/scalar.h"

namespace unfoldconv {

using torch::stable::Tensor;
using Bias = std::optional<Tensor>;

// Planes of a tensor in memory.
template <int Rank>
struct Planes {
  char* data;
  ScalarType dtype;
  PlaneLayout<Rank> layout;

  Planes at(int64_t outer, int64_t middle, int64_t inner = 0) const {
    const auto& s = layout.stride;
    return shifted(outer * s[0] + middle * s[1] + inner * s[2]);
  }
  Planes shifted(int64_t elements) const { return {data + elements * element_size(dtype), dtype, layout}; }
  Planes counted(int64_t outer, int64_t middle, int64_t inner) const {
    Planes result = *this;
    result.layout.count[0] = outer, result.layout.count[1] = middle, result.layout.count[2] = inner;
    return result;
  }
};

template <int To, int From>
Planes<To> with_leading_axes(const Planes<From>& planes) {
  return {planes.data, planes.dtype, with_leading_axes<To>(planes.layout)};
}

template <int To, int From>
Planes<To> trailing_axes(const Planes<From>& planes) {
  return {planes.data, planes.dtype, trailing_axes<To>(planes.layout)};
}

// A tensor [batch, channels, *sizes] as planes (batch, group, channel of the group).
template <int Rank>
Planes<Rank> planes_of(const Tensor& tensor, int64_t groups) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  const int64_t channels = sizes[1] / groups;
  Planes<Rank> planes{static_cast<char*>(tensor.data_ptr()),
                      tensor.scalar_type(),
                      {{sizes[0], groups, channels}, {strides[0], channels * strides[1], strides[1]}, {}}};
  for (int axis = 0; axis < Rank; ++axis) planes.layout.axis_stride[axis] = strides[2 + axis];
  return planes;
}

// A weight [out, in, *kernel] as planes (group, out of the group, in), and with `swap` as (group, in, out of the
// group).
template <int Rank>
Planes<Rank> weight_planes(const Tensor& weight, int64_t groups, bool swap) {
  Planes<Rank> planes = planes_of<Rank>(weight, 1);
  auto& [count, stride, axis_stride] = planes.layout;
  const int64_t outputs = count[0] / groups, inputs = count[2], out = stride[0], in = stride[2];
  count[0] = groups, count[1] = swap ? inputs : outputs, count[2] = swap ? outputs : inputs;
  stride[0] = outputs * out, stride[1] = swap ? in : out, stride[2] = swap ? out : in;
  return planes;
}

}  // namespace unfoldconv
