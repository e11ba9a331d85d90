// Sizes and index maths of a sliding window, for host and device, without torch.
//
// One spatial axis:  image index = position * stride - padding_low + tap * dilation
//                    positions   = (image + padding_low + padding_high - span) / stride + 1
//                    span        = (kernel - 1) * dilation + 1
// The high padding only decides how many positions there are, so it appears in no kernel.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define UNFOLDCONV_HOST_DEVICE __host__ __device__
#else
#define UNFOLDCONV_HOST_DEVICE
#endif

namespace unfoldconv {

template <int Rank>
struct Geometry {
  int64_t image[Rank];      // size of the image
  int64_t positions[Rank];  // how often the window fits
  int64_t kernel[Rank];     // taps per axis
  int64_t stride[Rank];
  int64_t dilation[Rank];
  int64_t padding_low[Rank];  // may be negative: then the image is cropped

  UNFOLDCONV_HOST_DEVICE int64_t image_numel() const { return product(image); }
  UNFOLDCONV_HOST_DEVICE int64_t position_numel() const { return product(positions); }
  UNFOLDCONV_HOST_DEVICE int64_t tap_numel() const { return product(kernel); }

  UNFOLDCONV_HOST_DEVICE static int64_t product(const int64_t (&sizes)[Rank]) {
    int64_t result = 1;
    for (int axis = 0; axis < Rank; ++axis) result *= sizes[axis];
    return result;
  }
};

// A stack of planes (one channel of one image each), counted by three nested indices, the last the
// fastest: (batch, group, channel of the group). Strides count elements and may be any number.
template <int Rank>
struct PlaneLayout {
  int64_t count[3];
  int64_t stride[3];
  int64_t axis_stride[Rank];

  UNFOLDCONV_HOST_DEVICE int64_t plane_numel() const { return count[0] * count[1] * count[2]; }

  UNFOLDCONV_HOST_DEVICE int64_t plane_offset(int64_t plane) const {
    const int64_t inner = plane % count[2];
    const int64_t middle = plane / count[2] % count[1];
    const int64_t outer = plane / count[2] / count[1];
    return outer * stride[0] + middle * stride[1] + inner * stride[2];
  }
};

// The same window with axes of size 1 in front, which a kernel of a higher rank walks in one step.
template <int To, int From>
Geometry<To> with_leading_axes(const Geometry<From>& geometry) {
  Geometry<To> result;
  for (int axis = 0; axis < To; ++axis) {
    const int from = axis - (To - From);
    result.image[axis] = from < 0 ? 1 : geometry.image[from];
    result.positions[axis] = from < 0 ? 1 : geometry.positions[from];
    result.kernel[axis] = from < 0 ? 1 : geometry.kernel[from];
    result.stride[axis] = from < 0 ? 1 : geometry.stride[from];
    result.dilation[axis] = from < 0 ? 1 : geometry.dilation[from];
    result.padding_low[axis] = from < 0 ? 0 : geometry.padding_low[from];
  }
  return result;
}

template <int To, int From>
PlaneLayout<To> with_leading_axes(const PlaneLayout<From>& layout) {
  PlaneLayout<To> result;
  for (int i = 0; i < 3; ++i) result.count[i] = layout.count[i], result.stride[i] = layout.stride[i];
  for (int axis = 0; axis < To; ++axis)
    result.axis_stride[axis] = axis < To - From ? 0 : layout.axis_stride[axis - (To - From)];
  return result;
}

// The reverse: the same without axes of size 1 in front.
template <int To, int From>
Geometry<To> trailing_axes(const Geometry<From>& geometry) {
  Geometry<To> result;
  for (int axis = 0; axis < To; ++axis) {
    const int from = axis + From - To;
    result.image[axis] = geometry.image[from];
    result.positions[axis] = geometry.positions[from];
    result.kernel[axis] = geometry.kernel[from];
    result.stride[axis] = geometry.stride[from];
    result.dilation[axis] = geometry.dilation[from];
    result.padding_low[axis] = geometry.padding_low[from];
  }
  return result;
}

template <int To, int From>
PlaneLayout<To> trailing_axes(const PlaneLayout<From>& layout) {
  PlaneLayout<To> result;
  for (int i = 0; i < 3; ++i) result.count[i] = layout.count[i], result.stride[i] = layout.stride[i];
  for (int axis = 0; axis < To; ++axis) result.axis_stride[axis] = layout.axis_stride[axis + From - To];
  return result;
}

// Whether windows or positions reach farther than any image: products of such numbers with strides and counts may not
// fit 63 bits.
template <int Rank>
bool may_overflow_index(const Geometry<Rank>& geometry) {
  constexpr int64_t far = int64_t{1} << 40;
  for (int axis = 0; axis < Rank; ++axis)
    if ((geometry.kernel[axis] - 1) * geometry.dilation[axis] >= far || geometry.padding_low[axis] >= far ||
        (geometry.positions[axis] - 1) * geometry.stride[axis] >= far)
      return true;
  return false;
}

// Makes a pointwise window's image one long row, where its axes and those of the result are one in memory: rows are cut
// into pieces less often.
template <int Rank, class... Layouts>
void merge_axes(Geometry<Rank>& geometry, Layouts&... layouts) {
  constexpr int last = Rank - 1;
  const auto pointwise = [&](int axis) {
    return geometry.kernel[axis] == 1 && geometry.stride[axis] == 1 && geometry.padding_low[axis] == 0 &&
           geometry.positions[axis] == geometry.image[axis];
  };
  for (int axis = last - 1; axis >= 0 && pointwise(axis) && pointwise(last); --axis) {
    const int64_t size = geometry.image[axis], row = geometry.image[last];
    if (size != 1 && !((layouts.axis_stride[axis] == layouts.axis_stride[last] * row) && ...)) return;
    geometry.image[last] = geometry.positions[last] = size * row;
    geometry.image[axis] = geometry.positions[axis] = 1;
  }
}

// A run of positions in row-major order: [first, first + count).
struct PositionRange {
  int64_t first;
  int64_t count;
};

// Splits a flat row-major index into one index per axis.
template <int Rank>
UNFOLDCONV_HOST_DEVICE inline void unravel(int64_t flat, const int64_t (&sizes)[Rank], int64_t (&index)[Rank]) {
  for (int axis = Rank - 1; axis >= 0; --axis) {
    index[axis] = flat % sizes[axis];
    flat /= sizes[axis];
  }
}

}  // namespace unfoldconv
