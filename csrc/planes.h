// Tensors as the kernels see them: a pointer and a layout of planes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "geometry.h"
#include "scalar.h"

namespace unfoldconv {

using torch::stable::Tensor;

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

// A tensor [batch, channels, *sizes] as planes (batch, group, channel of the group).
template <int Rank>
Planes<Rank> planes_of(const Tensor& tensor, int64_t groups) {
  const int64_t channels = tensor.size(1) / groups;
  Planes<Rank> planes{
      static_cast<char*>(tensor.data_ptr()),
      tensor.scalar_type(),
      {{tensor.size(0), groups, channels}, {tensor.stride(0), channels * tensor.stride(1), tensor.stride(1)}, {}}};
  for (int axis = 0; axis < Rank; ++axis) planes.layout.axis_stride[axis] = tensor.stride(2 + axis);
  return planes;
}

// A weight [out, in, *kernel] as planes (group, out of the group, in), and with `swap` as (group, in, out of the
// group).
template <int Rank>
Planes<Rank> weight_planes(const Tensor& weight, int64_t groups, bool swap) {
  const int64_t outputs = weight.size(0) / groups, inputs = weight.size(1);
  const int64_t out = weight.stride(0), in = weight.stride(1);
  Planes<Rank> planes = planes_of<Rank>(weight, 1);
  if (swap)
    planes.layout = {{groups, inputs, outputs}, {outputs * out, in, out}, {}};
  else
    planes.layout = {{groups, outputs, inputs}, {outputs * out, out, in}, {}};
  for (int axis = 0; axis < Rank; ++axis) planes.layout.axis_stride[axis] = weight.stride(2 + axis);
  return planes;
}

}  // namespace unfoldconv
