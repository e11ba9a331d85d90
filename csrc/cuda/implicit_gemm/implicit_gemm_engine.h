// Convolutions on CUDA as implicit matrix products, on tensor cores where there are any for the dtype: what host code
// decides, and the memory that the kernels of cuda/implicit_gemm.h are given.
#pragma once

#include "columns/columns.h"
#include "problem/correlation.h"
#include "problem/weight_grad.h"

namespace unfoldconv {

// They run the problem, or return false, having done nothing, where the kernels do not take it, by its dtype or its
// size.
bool correlate_by_implicit_gemm(const Place& place, const Correlation<3>& problem);  // of one output
bool input_grad_by_implicit_gemm(const Place& place, const InputGrad<3>& problem);
bool weight_sums_by_implicit_gemm(const Place& place, const WeightGrad<3>& problem);

}  // namespace unfoldconv
