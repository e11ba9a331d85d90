// Direct convolution on CUDA, for one or a few channels per group: no matrix product, and no copy of the operands.
//
// Planes are (batch, group, channel of the group) for images, and (group, channel of the result, channel of the source)
// for the weight; axes are three, leading ones of size 1. Everything is of one dtype: Half, BFloat16, Float or Double.
#pragma once

#include <memory>

#include "columns/columns.h"
#include "cuda/shared/float_kernels.h"

namespace unfoldconv::cuda {

// Whether the kernels suit so many channels per group: from 9 on a matrix product has more to multiply.
inline bool direct_suits(int64_t groups, int64_t inputs, int64_t outputs) {
  constexpr int64_t most = 8;
  return (inputs <= most && outputs <= most) || (inputs == 1 && groups > 1);
}

struct DirectOperand {
  const void* data;
  PlaneLayout<3> layout;
};

// A sum over taps: the convolution, or with `backward` its input gradient, whose `source` is the gradient of the output
// and whose weight has the roles of its channels swapped.
//
//   result[n, g, o] = bias[g, o] + sum over i and taps of source[n, g, i] * weight[g, o, i]
struct DirectCorrelation {
  ScalarType dtype;
  bool backward;
  Geometry<3> geometry;
  DirectOperand source, weight, result;  // result is written
  const void* bias;                      // [groups, channels of the result], contiguous, or null
};

// The gradient of the weight, contiguous [groups, channels of the gradient, channels of the image, taps].
//
//   result[g, o, i, tap] = sum over n and positions of gradient[n, g, o] * image[n, g, i]
struct DirectWeightSums {
  ScalarType dtype;
  Geometry<3> geometry;
  DirectOperand gradient, image;
  void* result;
};

// How a problem is cut up, for reports and tests.
struct DirectPlan {
  bool fits = false;  // into the shared memory of a block; if not, there is nothing else
  int64_t blocks = 0, shared_bytes = 0;
  int64_t rows = 0, columns = 0;  // of results, that a block computes of one plane
  int64_t planes = 0;             // of the source, that a block has in shared memory
  int64_t splits = 1;             // of a weight sum, added up by a second kernel
  int64_t workspace_bytes = 0;    // for the sums of all splits
};

// The plan of a problem; those of problems that have come before are known. Addresses are not looked at.
std::shared_ptr<const DirectPlan> plan_direct(const DirectCorrelation& problem);
std::shared_ptr<const DirectPlan> plan_direct(const DirectWeightSums& problem, int64_t workspace_limit);

// Enqueues a problem, by a plan that plan_direct() gave for it, and that fits. `workspace` is read only with several
// splits.
void correlate_direct(void* stream, const DirectCorrelation& problem, const DirectPlan& plan);
void weight_sums_direct(void* stream, const DirectWeightSums& problem, const DirectPlan& plan, void* workspace);

}  // namespace unfoldconv::cuda
