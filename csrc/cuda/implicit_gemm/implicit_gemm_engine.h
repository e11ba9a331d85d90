// Convolutions on CUDA as implicit matrix products, on tensor cores where there are any for the dtype: what host code
// decides, and the memory that the kernels of implicit_gemm_launch.h are given.
#pragma once

#include "runtime/engine.h"

namespace unfoldconv {

const char* decline_implicit_gemm(const OneImage<Correlation<3>>& problem);
const char* decline_implicit_gemm(const OneImage<InputGrad<3>>& problem);
const char* decline_implicit_gemm(const OneImage<WeightGrad<3>>& problem);

const char* plan_implicit_gemm(const Correlation<3>& problem, const Call& call, JobSlot& slot);
const char* plan_implicit_gemm(const InputGrad<3>& problem, const Call& call, JobSlot& slot);
const char* plan_implicit_gemm(const WeightGrad<3>& problem, const Call& call, JobSlot& slot);

}  // namespace unfoldconv
