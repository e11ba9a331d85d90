// The engines of CUDA.
#ifdef UNFOLDCONV_WITH_CUDA

#include "columns/columns_engine.h"
#include "cuda/depthwise/depthwise_cuda_engine.h"
#include "cuda/implicit_gemm/implicit_gemm_engine.h"
#include "cuda/integers/integer_products.h"
#include "cuda/stem/stem_engine.h"
#include "dispatch/engine_tables.h"

namespace unfoldconv {
namespace {

const char* plan_columns(const Correlation<3>& problem, const Call& call, JobSlot& slot) {
  return plan_correlate_columns(problem, call, slot, cuda::multiply_integers);
}

const char* plan_columns(const WeightGrad<3>& problem, const Call& call, JobSlot& slot) {
  return plan_weight_grad_columns(problem, call, slot, cuda::multiply_integers);
}

constexpr CorrelateEngine kCorrelate[] = {
    {"depthwise.direct", "depthwise", false, decline_direct_depthwise, plan_direct},
    {"grouped.direct", "grouped", false, decline_direct_grouped, plan_direct},
    {"stem", "stem", false, decline_stem, plan_stem},
    {"implicit_gemm", "implicit_gemm", false, decline_implicit_gemm, plan_implicit_gemm},
    {"columns", "columns", false, nullptr, plan_columns},
};

constexpr InputGradEngine kInputGrad[] = {
    {"depthwise.direct", "depthwise", false, decline_direct_depthwise, plan_direct},
    {"grouped.direct", "grouped", false, decline_direct_grouped, plan_direct},
    {"implicit_gemm", "implicit_gemm", false, decline_implicit_gemm, plan_implicit_gemm},
};

constexpr WeightGradEngine kWeightGrad[] = {
    {"depthwise.direct", "depthwise", false, decline_direct_depthwise, plan_direct},
    {"grouped.direct", "grouped", false, decline_direct_grouped, plan_direct},
    {"stem", "stem", false, decline_stem, plan_stem},
    {"implicit_gemm", "implicit_gemm", false, decline_implicit_gemm, plan_implicit_gemm},
    {"columns", "columns", false, nullptr, plan_columns},
};

}  // namespace

const Engines& cuda_engines() {
  static constexpr Engines engines{kCorrelate, kInputGrad, kWeightGrad};
  return engines;
}

}  // namespace unfoldconv

#endif
