// The engines of the CPU.
#include "columns/columns_engine.h"
#include "cpu/correlate/correlate_engines.h"
#include "cpu/depthwise/depthwise_engine.h"
#include "cpu/input_grad/input_grad_engines.h"
#include "cpu/weight_grad/weight_grad_engines.h"
#include "dispatch/engine_tables.h"

namespace unfoldconv {
namespace {

constexpr CorrelateEngine kCorrelate[] = {
    {"depthwise.in_place", "depthwise", false, cpu::depthwise::decline_in_place, cpu::depthwise::plan_in_place},
    {"depthwise.boxes", "depthwise", false, cpu::depthwise::decline_boxes, cpu::depthwise::plan_boxes},
    {"grouped.boxes", "grouped", false, cpu::depthwise::decline_grouped, cpu::depthwise::plan_boxes},
    {"channels.strips", "channels", true, cpu::decline_strips, cpu::plan_strips},
    {"positions.lines", "positions", true, cpu::decline_lines, cpu::plan_lines},
    {"positions.few", "positions", true, nullptr, cpu::plan_few_positions},
    {"channels.patches", "channels", true, cpu::decline_channels, cpu::plan_channels},
    {"positions.planes", "positions", true, cpu::decline_planes, cpu::plan_planes},
    {"positions.transposed", "positions", true, cpu::decline_transposed, cpu::plan_transposed},
    {"positions.gathered", "positions", true, cpu::decline_positions, cpu::plan_positions},
    {"columns", "columns", false, nullptr, plan_correlate_columns},
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
    {"columns", "columns", false, nullptr, plan_weight_grad_columns},
};

}  // namespace

const Engines& cpu_engines() {
  static constexpr Engines engines{kCorrelate, kInputGrad, kWeightGrad};
  return engines;
}

}  // namespace unfoldconv
