#include "dispatch/input_grad_phases.h"

#include "columns/columns_engine.h"
#include "cpu/correlate/fill.h"
#include "cpu/correlate/transposed_weight.h"
#include "dispatch/driver.h"
#include "problem/phases.h"

namespace unfoldconv {

void correlate(const Call& call, const Correlation<3>& problem) {
  if (problem.batch() * problem.groups() * problem.rows() * problem.geometry.position_numel() == 0) return;
  run_first(engines_of(call.place).correlate, /*has_fallback=*/true, problem, call);
}

void correlate_phases(const Call& call, const InputGrad<3>& whole) {
  const Geometry<3>& geometry = whole.geometry;
  const Planes<3>& input = whole.grad_input;
  std::optional<cpu::TransposedWeight> transposed;
  if (!call.place.cuda && !may_overflow_index(geometry) && !is_family_excluded("positions"))
    transposed = cpu::plan_transposed_weight(whole);
  const bool runs = Report::wanted() == nullptr;
  const Scratch copy(transposed && runs ? transposed->bytes : 0, call.like);
  Planes<3> weights = whole.weight;
  if (transposed) weights = runs ? cpu::transpose_weight(whole, *transposed, copy.data_ptr()) : transposed->planes;
  const int64_t longest_run = longest_shared_run(call.place, whole.rank, input.layout.count[2], weights.dtype);
  std::vector<AxisPhase> axes[3];
  int64_t combinations[3];
  for (int axis = 0; axis < 3; ++axis) {
    axes[axis] = axis_phases(geometry.image[axis], geometry.kernel[axis], geometry.stride[axis],
                             geometry.dilation[axis], geometry.padding_low[axis], longest_run);
    combinations[axis] = static_cast<int64_t>(axes[axis].size());
  }
  // Phases that no tap reaches interlace with the others, so what they get is written to all of the result at once.
  const auto no_taps = [](const AxisPhase& phase) { return phase.taps == 0; };
  const bool filled = !call.place.cuda && std::any_of(axes, axes + 3, [&](const std::vector<AxisPhase>& phases) {
    return std::any_of(phases.begin(), phases.end(), no_taps);
  });
  if (filled && runs) cpu::fill(input, geometry.image, whole.bias);
  for (int64_t flat = 0; flat < Geometry<3>::product(combinations); ++flat) {
    int64_t chosen[3];
    unravel<3>(flat, combinations, chosen);
    // The correlation over grad_output that gives the phase, and the phase's part of the weight and of the result.
    Correlation<3> problem{whole.rank,
                           /*phase=*/true,
                           {},
                           whole.grad_output,
                           weights,
                           input,
                           {},
                           {},
                           {},
                           whole.bias,
                           transposed ? transposed->bytes : 0};
    Geometry<3>& phase = problem.geometry;
    for (int axis = 0; axis < 3; ++axis) {
      const AxisPhase& a = axes[axis][chosen[axis]];
      phase.image[axis] = geometry.positions[axis];
      phase.positions[axis] = a.count;
      phase.kernel[axis] = a.taps;
      phase.stride[axis] = 1;
      phase.dilation[axis] = a.dilation;
      phase.padding_low[axis] = a.padding_low;
      problem.run[axis] = a.run;
      problem.weight_step[axis] = weights.layout.axis_stride[axis];
      problem.output_step[axis] = input.layout.axis_stride[axis];
      problem.weight = problem.weight.shifted(a.tap * weights.layout.axis_stride[axis]);
      problem.weight.layout.axis_stride[axis] *= -a.tap_step;
      problem.output = problem.output.shifted(a.first * input.layout.axis_stride[axis]);
      problem.output.layout.axis_stride[axis] *= geometry.stride[axis];
    }
    if (filled && phase.tap_numel() == 0) continue;
    correlate(call, problem);
  }
}

}  // namespace unfoldconv
