// The three convolutions: as correlations and weight sums, by the engine that suits them.
#include "dispatch/convolution.h"

#include "columns/columns_engine.h"
#include "cpu/correlate/correlate_engines.h"
#include "cpu/correlate/fill.h"
#include "cpu/correlate/transposed_weight.h"
#include "cpu/depthwise/depthwise_engine.h"
#include "cpu/input_grad/input_grad_engines.h"
#include "cpu/weight_grad/weight_grad_engines.h"
#include "cuda/depthwise/depthwise_cuda_engine.h"
#include "cuda/implicit_gemm/implicit_gemm_engine.h"
#include "cuda/stem/stem_engine.h"
#include "problem/phases.h"
#include "problem/planes.h"
#include "runtime/engine.h"

namespace unfoldconv {
namespace {

template <int Rank>
void correlate(const Place& place, const Correlation<Rank>& problem) {
  if (problem.batch() * problem.groups() * problem.rows() * problem.geometry.position_numel() == 0) return;
  // Sums of nothing are the business of the columns engine.
  const bool empty = problem.channels() * problem.geometry.tap_numel() == 0;
  const bool near = !empty && !reaches_far(problem.geometry);
  if (!place.cuda && near && cpu::correlate<Rank>(problem)) return;
#ifdef UNFOLDCONV_WITH_CUDA
  if (place.cuda && near && may_use(Engine::implicit_gemm) &&
      correlate_by_implicit_gemm(place, with_leading_axes<3>(problem)))
    return;
#endif
  correlate_by_columns<Rank>(place, problem);
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

// Whether the numbers of a weight [out, in, *kernel] lie in order, wherever an axis has more than one.
bool contiguous_taps(const Tensor& weight) {
  int64_t numel = 1;
  for (int64_t axis = weight.dim() - 1; axis >= 0; --axis) {
    if (weight.size(axis) != 1 && weight.stride(axis) != numel) return false;
    numel *= weight.size(axis);
  }
  return true;
}

// Whether the depthwise engine is to compute a convolution or a gradient of it; with one channel per group it reads the
// weight, if it does, as it lies.
template <int Rank>
bool use_depthwise(const Place& place, const Planes<Rank>& image, const Planes<Rank>& output, const Tensor* weight,
                   const Geometry<Rank>& geometry) {
  const bool one = image.layout.count[2] == 1;
  return !place.cuda && !reaches_far(geometry) && may_use(one ? Engine::depthwise : Engine::grouped) &&
         (!one || weight == nullptr || contiguous_taps(*weight)) && cpu::depthwise_takes(image, output, geometry);
}

const char* bias_data(const Bias& bias) { return bias ? static_cast<const char*>(bias->data_ptr()) : nullptr; }

}  // namespace

template <int Rank>
void conv(const Place& place, const Tensor& input, const Tensor& weight, const Bias& bias,
          const Geometry<Rank>& geometry, int64_t groups, Tensor& output) {
  report_op<Rank>("conv", geometry, input.size(0), weight, {&input, &weight, &output});
  const Planes<Rank> image = planes_of<Rank>(input, groups), result = planes_of<Rank>(output, groups);
  if (use_depthwise<Rank>(place, image, result, &weight, geometry))
    return cpu::depthwise_conv(input, weight, bias, geometry, groups, output);
  if (direct_conv<Rank>(place, input, weight, bias, geometry, groups, output)) return;
  if (stem_conv<Rank>(place, input, weight, bias, geometry, groups, output)) return;
  const Planes<Rank> weights = weight_planes<Rank>(weight, groups, /*swap=*/false);
  correlate<Rank>(place, {image, geometry, {weights}, {result}, bias_data(bias), input});
}

template <int Rank>
void conv_input_grad(const Place& place, const Tensor& grad_output, const Tensor& weight, const Bias& bias,
                     const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_input) {
  report_op<Rank>("conv_input_grad", geometry, grad_output.size(0), weight, {&grad_output, &weight, &grad_input});
  const Planes<Rank> output = planes_of<Rank>(grad_output, groups), input = planes_of<Rank>(grad_input, groups);
  if (use_depthwise<Rank>(place, input, output, &weight, geometry))
    return cpu::depthwise_input_grad(grad_output, weight, bias, geometry, groups, grad_input);
  if (direct_input_grad<Rank>(place, grad_output, weight, bias, geometry, groups, grad_input)) return;
  Planes<Rank> weights = weight_planes<Rank>(weight, groups, /*swap=*/true);
  const InputGrad<Rank> whole{output, input, weights, geometry, bias_data(bias), grad_output};
  if (!place.cuda && !reaches_far(geometry) && cpu::fold_input_grad<Rank>(whole)) return;
#ifdef UNFOLDCONV_WITH_CUDA
  if (place.cuda && !reaches_far(geometry) && grad_output.numel() != 0 && grad_input.numel() != 0 &&
      may_use(Engine::implicit_gemm) && input_grad_by_implicit_gemm(place, with_leading_axes<3>(whole)))
    return;
#endif
  std::optional<cpu::TurnedWeight<Rank>> turned;
  if (!place.cuda && !reaches_far(geometry)) turned = cpu::turned_weight<Rank>(weights, geometry, output, grad_output);
  if (turned) weights = turned->planes;
  const int64_t rows = input.layout.count[2];
  const int64_t longest_run = longest_shared_run<Rank>(place, rows, weights.dtype);
  std::vector<AxisPhase> axes[Rank];
  int64_t combinations[Rank];
  for (int axis = 0; axis < Rank; ++axis) {
    axes[axis] = axis_phases(geometry.image[axis], geometry.kernel[axis], geometry.stride[axis],
                             geometry.dilation[axis], geometry.padding_low[axis], longest_run);
    combinations[axis] = static_cast<int64_t>(axes[axis].size());
  }
  // Phases that no tap reaches interlace with the others, so what they get is written to all of the result at once.
  const auto no_taps = [](const AxisPhase& phase) { return phase.taps == 0; };
  const bool filled = !place.cuda && std::any_of(axes, axes + Rank, [&](const std::vector<AxisPhase>& phases) {
    return std::any_of(phases.begin(), phases.end(), no_taps);
  });
  if (filled && Report::wanted() == nullptr) cpu::fill<Rank>(input, geometry.image, bias_data(bias));
  for (int64_t flat = 0; flat < Geometry<Rank>::product(combinations); ++flat) {
    int64_t chosen[Rank], runs[Rank];
    unravel<Rank>(flat, combinations, chosen);
    // The correlation over grad_output that gives the phase, and the phase's part of the weight and of the result.
    Geometry<Rank> phase{};
    Planes<Rank> taps = weights, target = input;
    for (int axis = 0; axis < Rank; ++axis) {
      const AxisPhase& a = axes[axis][chosen[axis]];
      runs[axis] = a.run;
      phase.image[axis] = geometry.positions[axis];
      phase.positions[axis] = a.count;
      phase.kernel[axis] = a.taps;
      phase.stride[axis] = 1;
      phase.dilation[axis] = a.dilation;
      phase.padding_low[axis] = a.padding_low;
      taps = taps.shifted(a.tap * weights.layout.axis_stride[axis]);
      taps.layout.axis_stride[axis] *= -a.tap_step;
      target = target.shifted(a.first * input.layout.axis_stride[axis]);
      target.layout.axis_stride[axis] *= geometry.stride[axis];
    }
    if (filled && phase.tap_numel() == 0) continue;
    const int64_t variants = Geometry<Rank>::product(runs);
    Correlation<Rank> problem{output, phase, {}, {}, bias_data(bias), grad_output, turned ? turned->bytes : 0};
    for (int64_t variant = 0; variant < variants; ++variant) {
      int64_t shift[Rank], weight_shift = 0, target_shift = 0;
      unravel<Rank>(variant, runs, shift);
      for (int axis = 0; axis < Rank; ++axis) {
        weight_shift += shift[axis] * weights.layout.axis_stride[axis];
        target_shift += shift[axis] * input.layout.axis_stride[axis];
      }
      problem.outputs.push_back(target.shifted(target_shift));
      problem.weights.push_back(taps.shifted(weight_shift));
    }
    correlate<Rank>(place, problem);
  }
}

template <int Rank>
void conv_weight_grad(const Place& place, const Tensor& grad_output, const Tensor& input,
                      const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_weight) {
  report_op<Rank>("conv_weight_grad", geometry, input.size(0), grad_weight, {&grad_output, &input, &grad_weight});
  const Planes<Rank> output = planes_of<Rank>(grad_output, groups), image = planes_of<Rank>(input, groups);
  if (use_depthwise<Rank>(place, image, output, nullptr, geometry))
    return cpu::depthwise_weight_grad(grad_output, input, geometry, groups, grad_weight);
  if (direct_weight_grad<Rank>(place, grad_output, input, geometry, groups, grad_weight)) return;
  if (stem_weight_grad<Rank>(place, grad_output, input, geometry, groups, grad_weight)) return;
  const WeightSums<Rank> problem{output, image, geometry, grad_weight};
  if (!place.cuda && !reaches_far(geometry) && cpu::weight_sums<Rank>(problem)) return;
#ifdef UNFOLDCONV_WITH_CUDA
  if (place.cuda && !reaches_far(geometry) && may_use(Engine::implicit_gemm) &&
      weight_sums_by_implicit_gemm(place, with_leading_axes<3>(problem)))
    return;
#endif
  weight_sums_by_columns<Rank>(place, problem);
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
