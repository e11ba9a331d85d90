// The engines of the CPU.
#include "columns/columns_engine.h"
#include "cpu/correlate/correlate_engines.h"
#include "cpu/input_grad/input_grad_engines.h"
#include "cpu/kernels/kernels.h"
#include "cpu/weight_grad/weight_grad_engines.h"
#include "dispatch/legacy.h"

namespace unfoldconv {
namespace {

template <bool (*f)(const Correlation<3>&)>
bool correlate(const Place&, const Correlation<3>& problem) {
  return f(problem);
}
template <bool (*f)(const InputGrad<3>&)>
bool input_grad(const Place&, const InputGrad<3>& problem) {
  return f(problem);
}
template <bool (*f)(const WeightGrad<3>&)>
bool weight_grad(const Place&, const WeightGrad<3>& problem) {
  return f(problem);
}
bool wanted(const Correlation<3>& problem) {
  const bool input_adjoins = problem.image.layout.stride[2] == 1 || problem.channels() == 1;
  const bool output_adjoins = problem.output.layout.stride[2] == 1 || problem.rows() == 1;
  return input_adjoins && (problem.channels() > 1 || output_adjoins);
}
bool few(const Correlation<3>& problem) {
  return wanted(problem) && cpu::few_positions(problem) && cpu::correlate_positions(problem);
}
bool channels(const Correlation<3>& problem) { return wanted(problem) && cpu::correlate_channels(problem); }

bool fold(const InputGrad<3>& problem, bool (*f)(const InputGrad<3>&)) {
  if (problem.grad_input.layout.count[1] > 1 || problem.grad_output.layout.count[2] < 2) return false;
  if (problem.grad_input.layout.plane_numel() * problem.geometry.image_numel() == 0) return false;
  if (problem.grad_input.layout.count[2] > cpu::kDotColumns) return false;
  // Windows that do not overlap leave nothing to add up.
  if (problem.geometry.kernel[2] <= problem.geometry.stride[2]) return false;
  return f(problem);
}
bool fold_channels(const InputGrad<3>& problem) { return fold(problem, cpu::fold_channels); }
bool fold_planes(const InputGrad<3>& problem) { return fold(problem, cpu::fold_planes); }

constexpr int64_t kShortRow = 8;  // positions; runs of a line that are shorter cost more than gathering patches

constexpr int64_t kWholeRows = 16;  // of which vectors of every instruction set are full

bool long_rows(const WeightGrad<3>& problem) { return problem.geometry.positions[2] >= kShortRow; }
// With a single tap an element serves only panels of the other operand, whichever of the two engines lays it out. The
// one of rows lays out long rows of the image and reads grad_output where it lies.
bool pointwise_rows(const WeightGrad<3>& problem) {
  const bool by_rows = problem.geometry.tap_numel() == 1 && problem.geometry.stride[2] == 1 &&
                       problem.grad_output.layout.stride[2] == 1 && problem.rows() % kWholeRows == 0;
  return by_rows && long_rows(problem) && cpu::weight_sums_of_rows(problem);
}
bool rows(const WeightGrad<3>& problem) { return long_rows(problem) && cpu::weight_sums_of_rows(problem); }

using C = Correlation<3>;
using I = InputGrad<3>;
using W = WeightGrad<3>;

constexpr CorrelateEngine kCorrelate[] = {
    {"channels.strips", "channels", true, nullptr, plan_legacy<C, correlate<cpu::correlate_strips>>},
    {"positions.lines", "positions", true, cpu::decline_lines, cpu::plan_lines},
    {"positions.few", "positions", true, nullptr, plan_legacy<C, correlate<few>>},
    {"channels.patches", "channels", true, nullptr, plan_legacy<C, correlate<channels>>},
    {"positions.planes", "positions", true, nullptr, plan_legacy<C, correlate<cpu::correlate_planes>>},
    {"positions.transposed", "positions", true, nullptr, plan_legacy<C, correlate<cpu::correlate_turned>>},
    {"positions.gathered", "positions", true, nullptr, plan_legacy<C, correlate<cpu::correlate_positions>>},
    {"columns", "columns", false, nullptr, plan_correlate_columns},
};

constexpr InputGradEngine kInputGrad[] = {
    {"channels.overlap_add", "channels", false, nullptr, plan_legacy<I, input_grad<fold_channels>>},
    {"positions.overlap_add", "positions", false, nullptr, plan_legacy<I, input_grad<fold_planes>>},
};

constexpr WeightGradEngine kWeightGrad[] = {
    {"positions.pointwise", "positions", true, nullptr, plan_legacy<W, weight_grad<pointwise_rows>>},
    {"channels.patches", "channels", true, nullptr, plan_legacy<W, weight_grad<cpu::weight_sums_of_channels>>},
    {"positions.lines", "positions", true, nullptr, plan_legacy<W, weight_grad<rows>>},
    {"positions.patches", "positions", true, nullptr, plan_legacy<W, weight_grad<cpu::weight_sums_of_patches>>},
    {"columns", "columns", false, nullptr, plan_weight_grad_columns},
};

}  // namespace

const Engines& cpu_engines() {
  static constexpr Engines engines{kCorrelate, kInputGrad, kWeightGrad};
  return engines;
}

}  // namespace unfoldconv
