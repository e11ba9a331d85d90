// Direct convolution on CUDA, for one or a few channels per group: no matrix product, and no copy of the operands.
//
// Planes are (batch, group, channel of the group) for images, and (group, channel of the result, channel of the source)
// for the weight; axes are three, leading ones of size 1. Everything is of one dtype: Half, BFloat16, Float or Double.
#pragma once

#include <functional>

#include "columns/columns.h"
#include "problem/scalar.h"

namespace unfoldconv::cuda {

// Whether the kernels suit so many channels per group: from 9 on a matrix product has more to multiply.
inline bool direct_takes(ScalarType dtype, int64_t groups, int64_t inputs, int64_t outputs) {
  constexpr int64_t most = 8;
  const bool floating = is_16bit_float(dtype) || dtype == ScalarType::Float || dtype == ScalarType::Double;
  return floating && inputs > 0 && outputs > 0 && ((inputs <= most && outputs <= most) || (inputs == 1 && groups > 1));
}

// Calls f(Type<T>{}) with the type of a dtype that direct_takes().
template <class F>
void dispatch_float(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Half: return f(Type<Half>{});
    case ScalarType::BFloat16: return f(Type<BFloat16>{});
    case ScalarType::Float: return f(Type<float>{});
    case ScalarType::Double: return f(Type<double>{});
    default: refuse(std::string("dtype must be a floating-point type, but got ") + torch::headeronly::toString(dtype));
  }
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

// Enqueues a problem whose plan fits, if it is to `run`, and returns the plan.
DirectPlan correlate_direct(void* stream, const DirectCorrelation& problem, bool run);

// Memory for the sums of all splits, to be had until the work is done.
using Workspace = std::function<void*(int64_t bytes)>;

// The same; it is to run if there is a `workspace`. Only that of several splits is asked for.
DirectPlan weight_sums_direct(void* stream, const DirectWeightSums& problem, int64_t workspace_limit,
                              const Workspace& workspace);

}  // namespace unfoldconv::cuda
