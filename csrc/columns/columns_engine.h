// The columns engine: bounded chunks of im2col and a matrix product, once for all devices and every dtype.
//
//   conv              y_g  = W_g U_g           U = im2col(input), [C * taps, positions] per group
//   conv_input_grad   the same over grad_output, phase by phase (phases.h), with the taps reversed
//   conv_weight_grad  dW_g = sum_n dy_g U_g^T
//
// 16-bit floats are widened as they are gathered, so every sum runs in float and is rounded once. A chunk is a range of
// positions of one image and group, or several groups or several images where whole ones fit. On the CPU chunks are the
// tasks of a parallel loop, on CUDA they follow each other in the stream. Their sizes follow from the problem, batch
// size included, and from the workspace limit, never from the number of threads, so neither do the results.
#pragma once

#include "columns/matmul.h"
#include "problem/correlation.h"
#include "problem/weight_grad.h"
#include "runtime/job.h"

namespace unfoldconv {

// They take every problem. `integers` multiplies those of CUDA.
const char* plan_correlate_columns(const Correlation<3>& problem, const Call& call, JobSlot& slot,
                                   MultiplyIntegers integers);
const char* plan_weight_grad_columns(const WeightGrad<3>& problem, const Call& call, JobSlot& slot,
                                     MultiplyIntegers integers);

// On the CPU.
const char* plan_correlate_columns(const Correlation<3>& problem, const Call& call, JobSlot& slot);
const char* plan_weight_grad_columns(const WeightGrad<3>& problem, const Call& call, JobSlot& slot);

// How many residues of an axis may share a product (phases.h): as many as leave a chunk room for enough positions.
int64_t longest_shared_run(const Place& place, int rank, int64_t rows, ScalarType dtype);

}  // namespace unfoldconv
