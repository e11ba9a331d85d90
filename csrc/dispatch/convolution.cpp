// The three convolutions: as problems of the tables, run by the first engine that takes them.
#include "dispatch/convolution.h"

#include "cpu/depthwise/depthwise_engine.h"
#include "dispatch/driver.h"
#include "dispatch/input_grad_phases.h"
#include "runtime/legacy_report.h"

namespace unfoldconv {
namespace {

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

// Whether the depthwise engine is to compute a convolution or a gradient of it; with one channel per group it reads the
// weight, if it does, as it lies.
template <int Rank>
bool use_depthwise(const Place& place, const Planes<Rank>& image, const Planes<Rank>& output, const Tensor* weight,
                   const Geometry<Rank>& geometry) {
  const bool one = image.layout.count[2] == 1;
  return !place.cuda && !may_overflow_index(geometry) && (!one || weight == nullptr || contiguous_taps(*weight)) &&
         cpu::depthwise_takes(image, output, geometry);
}

const char* depthwise_name(int64_t channels) { return channels == 1 ? "depthwise" : "grouped"; }

const char* bias_data(const Bias& bias) { return bias ? static_cast<const char*>(bias->data_ptr()) : nullptr; }

template <int Rank>
Planes<3> planes_3d(const Tensor& tensor, int64_t groups) {
  return with_leading_axes<3>(planes_of<Rank>(tensor, groups));
}

}  // namespace

template <int Rank>
void conv(const Place& place, const Tensor& input, const Tensor& weight, const Bias& bias,
          const Geometry<Rank>& geometry, int64_t groups, Tensor& output) {
  report_op<Rank>("conv", geometry, input.size(0), weight, {&input, &weight, &output});
  const Planes<Rank> image = planes_of<Rank>(input, groups), result = planes_of<Rank>(output, groups);
  if (use_depthwise<Rank>(place, image, result, &weight, geometry) &&
      legacy(depthwise_name(image.layout.count[2]), [&] {
        cpu::depthwise_conv(input, weight, bias, geometry, groups, output);
        return true;
      }))
    return;
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
  if (use_depthwise<Rank>(place, input, output, &weight, geometry) &&
      legacy(depthwise_name(input.layout.count[2]), [&] {
        cpu::depthwise_input_grad(grad_output, weight, bias, geometry, groups, grad_input);
        return true;
      }))
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
  if (use_depthwise<Rank>(place, image, output, nullptr, geometry) &&
      legacy(depthwise_name(image.layout.count[2]), [&] {
        cpu::depthwise_weight_grad(grad_output, input, geometry, groups, grad_weight);
        return true;
      }))
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
