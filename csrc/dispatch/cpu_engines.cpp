// The engines of the CPU.
#include "columns/columns_engine.h"
#include "cpu/correlate/correlate_engines.h"
#include "cpu/depthwise/depthwise_engine.h"
#include "cpu/input_grad/input_grad_engines.h"
#include "cpu/weight_grad/weight_grad_engines.h"
#include "dispatch/legacy.h"

namespace unfoldconv {
namespace {

template <bool (*f)(const Correlation<3>&)>
bool correlate(const Place&, const Correlation<3>& problem) {
  return f(problem);
}
bool correlate_columns(const Place& place, const Correlation<3>& problem) {
  correlate_by_columns_of_rank(place, problem);
  return true;
}
bool weight_columns(const Place& place, const WeightGrad<3>& problem) {
  weight_sums_by_columns_of_rank(place, problem);
  return true;
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

using C = Correlation<3>;
using W = WeightGrad<3>;

constexpr CorrelateEngine kCorrelate[] = {
    {"depthwise.in_place", "depthwise", false, cpu::depthwise::decline_in_place, cpu::depthwise::plan_in_place},
    {"depthwise.boxes", "depthwise", false, cpu::depthwise::decline_boxes, cpu::depthwise::plan_boxes},
    {"grouped.boxes", "grouped", false, cpu::depthwise::decline_grouped, cpu::depthwise::plan_boxes},
    {"channels.strips", "channels", true, nullptr, plan_legacy<C, correlate<cpu::correlate_strips>>},
    {"positions.lines", "positions", true, cpu::decline_lines, cpu::plan_lines},
    {"positions.few", "positions", true, nullptr, plan_legacy<C, correlate<few>>},
    {"channels.patches", "channels", true, nullptr, plan_legacy<C, correlate<channels>>},
    {"positions.planes", "positions", true, nullptr, plan_legacy<C, correlate<cpu::correlate_planes>>},
    {"positions.transposed", "positions", true, nullptr, plan_legacy<C, correlate<cpu::correlate_turned>>},
    {"positions.gathered", "positions", true, nullptr, plan_legacy<C, correlate<cpu::correlate_positions>>},
    {"columns", "columns", false, nullptr, plan_legacy<C, correlate_columns>},
};

constexpr InputGradEngine kInputGrad[] = {
    {"depthwise.in_place", "depthwise", false, cpu::depthwise::decline_in_place, cpu::depthwise::plan_in_place},
    {"depthwise.boxes", "depthwise", false, cpu::depthwise::decline_boxes, cpu::depthwise::plan_boxes},
    {"grouped.boxes", "grouped", false, cpu::depthwise::decline_grouped, cpu::depthwise::plan_boxes},
    {"channels.overlap_add", "channels", false, cpu::input_grad::decline_channels, cpu::input_grad::plan_channels},
    {"positions.overlap_add", "positions", false, cpu::input_grad::decline_positions, cpu::input_grad::plan_positions},
};

constexpr WeightGradEngine kWeightGrad[] = {
    {"depthwise.in_place", "depthwise", false, cpu::depthwise::decline_in_place, cpu::depthwise::plan_in_place},
    {"depthwise.boxes", "depthwise", false, cpu::depthwise::decline_boxes, cpu::depthwise::plan_boxes},
    {"grouped.boxes", "grouped", false, cpu::depthwise::decline_grouped, cpu::depthwise::plan_boxes},
    {"positions.pointwise", "positions", true, cpu::weight_grad::decline_pointwise, cpu::weight_grad::plan_lines},
    {"channels.patches", "channels", true, cpu::weight_grad::decline_channels, cpu::weight_grad::plan_channels},
    {"positions.lines", "positions", true, cpu::weight_grad::decline_lines, cpu::weight_grad::plan_lines},
    {"positions.patches", "positions", true, cpu::weight_grad::decline_patches, cpu::weight_grad::plan_patches},
    {"columns", "columns", false, nullptr, plan_legacy<W, weight_columns>},
};

}  // namespace

const Engines& cpu_engines() {
  static constexpr Engines engines{kCorrelate, kInputGrad, kWeightGrad};
  return engines;
}

}  // namespace unfoldconv
