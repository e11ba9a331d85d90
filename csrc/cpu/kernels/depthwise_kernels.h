// The inner loops of the depthwise engine (depthwise_engine.h), for one instruction set.
//
// They work on blocks of as many channels as a vector has lanes, in the type that sums are in: a buffer is
// [planes, rows, columns, lanes]. Three axes serve every rank. Strides count elements.
#pragma once

#include <cstdint>

#include "problem/scalar.h"

namespace unfoldconv::cpu {

// A box of positions of some channels, between a tensor and a buffer for each block of them.
struct DepthwiseCopy {
  int64_t count[3];        // positions
  int64_t stride[3];       // of the tensor
  int64_t channel_stride;  // of the tensor; this or stride[2] is 1, or there is one channel or one column
  int64_t channels;
  int64_t block_pitch, plane_pitch, row_pitch;  // of the buffers
};

// Positions p of a window over a buffer: tap k of axis a reads element low[a] + p * stride[a] + k * dilation[a] there.
// Planes and rows outside the buffer are padding, and left out; columns are all there, padding included.
struct DepthwiseWindow {
  int64_t positions[3];
  int64_t taps[3];
  int64_t stride[3];
  int64_t dilation[3];
  int64_t low[3];
  int64_t size[3];                 // of the buffer
  int64_t valid_begin, valid_end;  // the columns that are not padding
};

// Where a correlation finds its weights and puts its results.
struct DepthwiseOutput {
  int64_t
      weight_stride[3];  // from tap to tap, in elements of a packed weight [taps, group size, lanes]: may be negative
  int64_t stride[3];     // of the output, from position to position
  int64_t lanes;         // channels of the output
  ScalarType dtype;      // of the output
  int64_t bytes;         // of an element of it
};

// Groups of 1, 2, 4 or 8 channels have kernels, in this order, as far as a vector holds whole groups. An instance may
// have null for any but those of 1.
constexpr int kGroupSizes = 4;

// Small kernels over tensors with the channels innermost, of one dtype, read where they lie: the window's buffer is the
// image itself, `to` describes the output or its gradient, with all of its channels. A kernel row of 3 or 7 taps
// without dilation; a stride of 1, or of 2 for 3 taps. The weight gradient: 3 taps.
struct DepthwiseInPlace {
  DepthwiseWindow window;
  DepthwiseOutput to;
  int64_t image_stride[3];
  int64_t block_pitch;  // of packed weights and sums, in elements
};

struct DepthwiseKernels {
  int64_t vector_bytes;

  // buffer = tensor, widened; lanes without a channel become 0.
  void (*gather)(const DepthwiseCopy& copy, ScalarType dtype, const void* tensor, void* buffer);
  // tensor = buffer, rounded.
  void (*scatter)(const DepthwiseCopy& copy, ScalarType dtype, const void* buffer, void* tensor);
  // output[p] = bias + sum_k sum_c weight[k, c] image[window(p, k)] of channel c of the group; a null bias is 0.
  void (*correlate[kGroupSizes])(const DepthwiseWindow& window, const DepthwiseOutput& to, const void* image,
                                 const void* weight, const void* bias, void* output);
  // sums[c, k] += sum_p grad[p] image[window(p, k)] of channel c of the group; `type` is Float or Double, grad
  // [*positions, lanes].
  void (*weight_sums[kGroupSizes])(const DepthwiseWindow& window, ScalarType type, const void* image, const void* grad,
                                   void* sums);
  // The same for small kernels of one channel per group.
  void (*correlate_in_place)(const DepthwiseInPlace& p, const void* image, const void* weight, const void* bias,
                             void* output);
  void (*weight_sums_in_place)(const DepthwiseInPlace& p, const void* image, const void* grad, void* sums);
  // sums += more, both [vectors, lanes].
  void (*add)(ScalarType type, int64_t vectors, const void* more, void* sums);
};

}  // namespace unfoldconv::cpu
