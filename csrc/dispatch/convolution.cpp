// The three convolutions: as problems of the tables, run by the first engine that takes them.
#include "dispatch/convolution.h"

#include "columns/columns_engine.h"
#include "cpu/correlate/fill.h"
#include "cpu/correlate/transposed_weight.h"
#include "cuda/depthwise/depthwise_cuda_engine.h"
#include "cuda/stem/stem_engine.h"
#include "dispatch/driver.h"
#include "problem/phases.h"
#include "runtime/legacy_report.h"

namespace unfoldconv {
namespace {

void correlate(const Call& call, const Correlation<3>& problem) {
  if (problem.batch() * problem.groups() * problem.rows() * problem.geometry.position_numel() == 0) return;
  run_first(engines_of(call.place).correlate, /*has_fallback=*/true, problem, call);
}

// Tells a report, if one is wanted, what the op amounts to: a multiplication and an addition for every output element,
// channel of its group and tap, and every operand and the result moved once.
template <int Rank>
void report_op(const char* name, const Geometry<Rank>& geometry, int64_t batch, const Tensor& weight,
               std::initializer_list<const Tensor*> tensors) {
  Report* const report = Report::wanted();
  if (report == nullptr) return;
  double bytes = 0;
  for (const Tensor* tensor : tensors)
    bytes += static_cast<double>(tensor->numel()) * element_size(tensor->scalar_type());
  report->op(name, 2. * batch * geometry.position_numel() * static_cast<double>(weight.numel()), bytes);
}

template <class F>
bool legacy(const char* name, const F& f) {
  if (excluded_by_choice(name, name)) return false;
  Report* const report = Report::wanted();
  if (report == nullptr) return f();
  LegacyReport own;
  own.begin();
  const bool done = f();
  own.end();
  if (done) report->engine(name, own.plan);
  return done;
}

const char* depthwise_name(int64_t channels) { return channels == 1 ? "depthwise" : "grouped"; }

const char* bias_data(const Bias& bias) { return bias ? static_cast<const char*>(bias->data_ptr()) : nullptr; }

template <int Rank>
Planes<3> planes_3d(const Tensor& tensor, int64_t groups) {
  return with_leading_axes<3>(planes_of<Rank>(tensor, groups));
}

// An input gradient by its phases (phases.h), each a correlation.
void correlate_phases(const Call& call, const InputGrad<3>& whole) {
  const Geometry<3>& geometry = whole.geometry;
  const Planes<3>& input = whole.grad_input;
  Planes<3> weights = whole.weight;
  std::optional<cpu::TurnedWeight<3>> turned;
  if (!call.place.cuda && !may_overflow_index(geometry) && excluded_by_choice("positions", "positions") == nullptr)
    turned = cpu::turned_weight<3>(weights, geometry, whole.grad_output, call.like);
  if (turned) weights = turned->planes;
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
  if (filled && Report::wanted() == nullptr) cpu::fill<3>(input, geometry.image, whole.bias);
  for (int64_t flat = 0; flat < Geometry<3>::product(combinations); ++flat) {
    int64_t chosen[3];
    unravel<3>(flat, combinations, chosen);
    // The correlation over grad_output that gives the phase, and the phase's part of the weight and of the result.
    Correlation<3> problem{
        whole.rank,
        /*phase=*/true, {}, whole.grad_output, weights, input, {}, {}, {}, whole.bias, turned ? turned->bytes : 0};
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

}  // namespace

template <int Rank>
void conv(const Place& place, const Tensor& input, const Tensor& weight, const Bias& bias,
          const Geometry<Rank>& geometry, int64_t groups, Tensor& output) {
  report_op<Rank>("conv", geometry, input.size(0), weight, {&input, &weight, &output});
  const Planes<Rank> image = planes_of<Rank>(input, groups);
  if (legacy(depthwise_name(image.layout.count[2]),
             [&] { return direct_conv<Rank>(place, input, weight, bias, geometry, groups, output); }))
    return;
  if (legacy("stem", [&] { return stem_conv<Rank>(place, input, weight, bias, geometry, groups, output); })) return;
  correlate({place, input}, {Rank,
                             /*phase=*/false,
                             with_leading_axes<3>(geometry),
                             planes_3d<Rank>(input, groups),
                             with_leading_axes<3>(weight_planes<Rank>(weight, groups, /*swap=*/false)),
                             planes_3d<Rank>(output, groups),
                             {1, 1, 1},
                             {},
                             {},
                             bias_data(bias)});
}

template <int Rank>
void conv_input_grad(const Place& place, const Tensor& grad_output, const Tensor& weight, const Bias& bias,
                     const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_input) {
  report_op<Rank>("conv_input_grad", geometry, grad_output.size(0), weight, {&grad_output, &weight, &grad_input});
  const Planes<Rank> output = planes_of<Rank>(grad_output, groups), input = planes_of<Rank>(grad_input, groups);
  if (legacy(depthwise_name(input.layout.count[2]),
             [&] { return direct_input_grad<Rank>(place, grad_output, weight, bias, geometry, groups, grad_input); }))
    return;
  const InputGrad<3> problem{Rank,
                             with_leading_axes<3>(geometry),
                             with_leading_axes<3>(output),
                             with_leading_axes<3>(input),
                             with_leading_axes<3>(weight_planes<Rank>(weight, groups, /*swap=*/true)),
                             bias_data(bias)};
  if (problem.grad_input.layout.plane_numel() * geometry.image_numel() == 0) return;
  const Call call{place, grad_output};
  if (!run_first(engines_of(place).input_grad, /*has_fallback=*/false, problem, call)) correlate_phases(call, problem);
}

template <int Rank>
void conv_weight_grad(const Place& place, const Tensor& grad_output, const Tensor& input,
                      const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_weight) {
  report_op<Rank>("conv_weight_grad", geometry, input.size(0), grad_weight, {&grad_output, &input, &grad_weight});
  const Planes<Rank> output = planes_of<Rank>(grad_output, groups), image = planes_of<Rank>(input, groups);
  if (legacy(depthwise_name(image.layout.count[2]),
             [&] { return direct_weight_grad<Rank>(place, grad_output, input, geometry, groups, grad_weight); }))
    return;
  if (legacy("stem", [&] { return stem_weight_grad<Rank>(place, grad_output, input, geometry, groups, grad_weight); }))
    return;
  const WeightGrad<3> problem{Rank, with_leading_axes<3>(geometry), with_leading_axes<3>(output),
                              with_leading_axes<3>(image), static_cast<char*>(grad_weight.data_ptr())};
  run_first(engines_of(place).weight_grad, /*has_fallback=*/true, problem, {place, grad_weight});
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                                  \
  template void conv<RANK>(const Place&, const Tensor&, const Tensor&, const Bias&, const Geometry<RANK>&, int64_t,   \
                           Tensor&);                                                                                  \
  template void conv_input_grad<RANK>(const Place&, const Tensor&, const Tensor&, const Bias&, const Geometry<RANK>&, \
                                      int64_t, Tensor&);                                                              \
  template void conv_weight_grad<RANK>(const Place&, const Tensor&, const Tensor&, const Geometry<RANK>&, int64_t,    \
                                       Tensor&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv
