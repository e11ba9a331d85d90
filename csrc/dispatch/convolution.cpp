// The three convolutions: as problems of the tables, run by the first engine that takes them.
#include "dispatch/convolution.h"

#include "dispatch/driver.h"
#include "dispatch/input_grad_phases.h"

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
  const InputGrad<3> problem{Rank,
                             with_leading_axes<3>(geometry),
                             planes_3d<Rank>(grad_output, groups),
                             planes_3d<Rank>(grad_input, groups),
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
  const WeightGrad<3> problem{Rank, with_leading_axes<3>(geometry), planes_3d<Rank>(grad_output, groups),
                              planes_3d<Rank>(input, groups), static_cast<char*>(grad_weight.data_ptr())};
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
