// The engines of CUDA.
#ifdef UNFOLDCONV_WITH_CUDA

#include "columns/columns_engine.h"
#include "cuda/implicit_gemm/implicit_gemm_engine.h"
#include "dispatch/legacy.h"

namespace unfoldconv {
namespace {

bool correlate_columns(const Place& place, const Correlation<3>& problem) {
  correlate_by_columns_of_rank(place, problem);
  return true;
}
bool weight_columns(const Place& place, const WeightGrad<3>& problem) {
  weight_sums_by_columns_of_rank(place, problem);
  return true;
}
bool input_grad(const Place& place, const InputGrad<3>& problem) {
  const auto numel = [](const Planes<3>& planes, int64_t positions) { return planes.layout.plane_numel() * positions; };
  return numel(problem.grad_output, problem.geometry.position_numel()) != 0 &&
         numel(problem.grad_input, problem.geometry.image_numel()) != 0 && input_grad_by_implicit_gemm(place, problem);
}

using C = Correlation<3>;
using I = InputGrad<3>;
using W = WeightGrad<3>;

constexpr CorrelateEngine kCorrelate[] = {
    {"implicit_gemm", "implicit_gemm", false, nullptr, plan_legacy<C, correlate_by_implicit_gemm>},
    {"columns", "columns", false, nullptr, plan_legacy<C, correlate_columns>},
};

constexpr InputGradEngine kInputGrad[] = {
    {"implicit_gemm", "implicit_gemm", false, nullptr, plan_legacy<I, input_grad>},
};

constexpr WeightGradEngine kWeightGrad[] = {
    {"implicit_gemm", "implicit_gemm", false, nullptr, plan_legacy<W, weight_sums_by_implicit_gemm>},
    {"columns", "columns", false, nullptr, plan_legacy<W, weight_columns>},
};

}  // namespace

const Engines& cuda_engines() {
  static constexpr Engines engines{kCorrelate, kInputGrad, kWeightGrad};
  return engines;
}

}  // namespace unfoldconv

#endif
