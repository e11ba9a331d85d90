// Convolution of few channels and one group on CUDA, such as the first layer of a network: matrix products whose terms
// (channel and tap) lie side by side, so that few of them are for nothing.
//
// Planes are (batch, the group, channel) for images, and (the group, row, channel) for the weight; axes are three,
// leading ones of size 1. Everything is of one dtype: Half, BFloat16, Float or Double.
#pragma once

#include "cuda/depthwise/depthwise_launch.h"

namespace unfoldconv::cuda {

// Pieces of 16 bytes, which the implicit matrix product counts in, are half empty or more with so few channels of 16
// bits.
constexpr int64_t kMostStemChannels = 4;

//   output[n, m] = bias[m] + sum over c and taps of weight[m, c] * image[n, c]
struct StemConvolution {
  ScalarType dtype;
  bool tf32;  // whether Float may be multiplied as tf32
  Geometry<3> geometry;
  DirectOperand image, weight, output;  // output is written
  const void* bias;                     // one number per row, or null
};

// The gradient of the weight, contiguous [rows, channels, taps].
//
//   result[m, c, tap] = sum over n and positions of gradient[n, m] * image[n, c]
struct StemWeightSums {
  ScalarType dtype;
  bool tf32;
  Geometry<3> geometry;
  DirectOperand gradient, image;
  void* result;
};

// How a problem is cut up, for reports and tests.
struct StemPlan {
  bool fits = false;                // into the shared memory of a block; if not, there is nothing else
  int64_t positions = 0, rows = 0;  // of a block at a time
  int64_t terms = 0, chunks = 0;    // of a chunk, and how many there are
  int64_t blocks = 0, shared_bytes = 0;
  int64_t splits = 1, workspace_bytes = 0;  // as in DirectPlan
};

// As plan_direct() and what enqueues its problems.
std::shared_ptr<const StemPlan> plan_stem(const StemConvolution& problem);
std::shared_ptr<const StemPlan> plan_stem(const StemWeightSums& problem, int64_t workspace_limit);

void convolve_stem(void* stream, const StemConvolution& problem, const StemPlan& plan);
void weight_sums_stem(void* stream, const StemWeightSums& problem, const StemPlan& plan, void* workspace);

}  // namespace unfoldconv::cuda
