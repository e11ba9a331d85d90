// How operands of an implicit matrix product lie in memory, by which the kernels read them in pieces or element by
// element, and whether their index arithmetic reaches all of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "cuda/implicit_gemm/implicit_gemm_launch.h"
#include "problem/integer_math.h"
#include "problem/planes.h"

namespace unfoldconv::gemm {

// Why an engine declines a problem that does not.
constexpr const char* kTooLarge = "offsets inside of an image need more than 32 bits";

inline int64_t piece_elements(ScalarType dtype) { return cuda::kGemmPieceBytes / element_size(dtype); }

// Whether planes lie in memory as whole pieces of neighbours along `inner`, at addresses that allow it. `outer` are the
// other axes.
struct Step {
  int64_t size, stride;
};
inline bool in_pieces(const void* data, ScalarType dtype, Step inner, std::initializer_list<Step> outer) {
  const int64_t piece = piece_elements(dtype);
  bool result = reinterpret_cast<uintptr_t>(data) % cuda::kGemmPieceBytes == 0 && inner.size % piece == 0 &&
                (inner.stride == 1 || inner.size == 1);
  for (const Step& step : outer) result &= step.size == 1 || step.stride % piece == 0;
  return result;
}

inline bool channels_in_pieces(const Planes<3>& image, const int64_t (&size)[3]) {
  const auto& [count, stride, axis] = image.layout;
  return in_pieces(
      image.data, image.dtype, {count[2], stride[2]},
      {{count[0], stride[0]}, {count[1], stride[1]}, {size[0], axis[0]}, {size[1], axis[1]}, {size[2], axis[2]}});
}

// Whether axes of these sizes and strides lie in memory as one, whose elements are `step` apart.
inline bool lie_in_order(const int64_t (&size)[3], const int64_t (&stride)[3], int64_t step) {
  for (int axis = 2; axis >= 0; step *= size[axis], --axis)
    if (size[axis] != 1 && stride[axis] != step) return false;
  return true;
}

// Whether a window is one element of the image, and every element its turn.
inline bool is_pointwise(const Geometry<3>& geometry) {
  bool result = geometry.tap_numel() == 1;
  for (int axis = 0; axis < 3; ++axis)
    result &= geometry.positions[axis] == geometry.image[axis] && geometry.padding_low[axis] == 0 &&
              (geometry.stride[axis] == 1 || geometry.positions[axis] == 1);
  return result;
}

// Whether neighbouring planes are nearer in memory than neighbouring positions.
inline bool planes_innermost(const Planes<3>& planes) {
  return std::abs(planes.layout.stride[2]) < std::abs(planes.layout.axis_stride[2]);
}

// Whether planes can be read or written in pieces along their positions.
inline bool positions_in_pieces(const Planes<3>& planes, const int64_t (&size)[3]) {
  const auto& [count, stride, axis] = planes.layout;
  return lie_in_order(size, axis, 1) &&
         in_pieces(planes.data, planes.dtype, {Geometry<3>::product(size), 1},
                   {{count[0], stride[0]}, {count[1], stride[1]}, {count[2], stride[2]}});
}

// Along what planes of positions are gathered, of which `whole` ones are read as they lie.
inline cuda::Gather gather_of(const Planes<3>& planes, const int64_t (&size)[3], bool whole) {
  if (whole && positions_in_pieces(planes, size)) return cuda::Gather::pieces;
  return planes_innermost(planes) ? cuda::Gather::rows : cuda::Gather::positions;
}

// Whether index arithmetic of 32 bits reaches every element of an image from every position, with room for what lies
// beyond: terms that do not count.
inline bool fits_32_bits(const Planes<3>& image, const Geometry<3>& geometry, double rows) {
  const auto& [count, stride, axis_stride] = image.layout;
  const double piece = piece_elements(image.dtype), limit = cuda::gemm_index_limit();
  double offset = (count[2] + piece) * std::fabs(static_cast<double>(stride[2]));
  double largest = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const double reach = std::fabs(static_cast<double>(geometry.padding_low[axis])) +
                         static_cast<double>(geometry.positions[axis]) * geometry.stride[axis] +
                         static_cast<double>(geometry.kernel[axis]) * geometry.dilation[axis] + geometry.image[axis];
    largest = std::max(largest, reach);
    offset += reach * std::fabs(static_cast<double>(axis_stride[axis]));
  }
  const double terms = static_cast<double>(geometry.tap_numel()) * (count[2] + piece);
  constexpr double far = 1 << 28;  // half of what the kernels take for outside of every image
  return largest < far &&
         std::max({offset, largest, terms, rows, static_cast<double>(geometry.position_numel())}) + 1024 <= limit;
}

// Whether a weight lies in memory as the kernels read it.
inline bool in_order(const Planes<3>& weight, const int64_t (&kernel)[3]) {
  const auto& [count, stride, axis_stride] = weight.layout;
  return lie_in_order(kernel, axis_stride, count[2]) &&
         in_pieces(weight.data, weight.dtype, {count[2], stride[2]}, {{count[0], stride[0]}, {count[1], stride[1]}});
}

}  // namespace unfoldconv::gemm
