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
