#include "cuda/depthwise/depthwise_cuda_engine.h"

#include "cuda/depthwise/depthwise_launch.h"
#include "problem/planes.h"
#include "runtime/allocation.h"
#include "runtime/legacy_report.h"
#include "runtime/workspace.h"

namespace unfoldconv {

#ifdef UNFOLDCONV_WITH_CUDA

namespace {

constexpr const char* kWhy = "few channels per group: matrix products would be mostly empty";

template <int Rank>
cuda::DirectOperand operand_of(const Planes<Rank>& planes) {
  return {planes.data, with_leading_axes<3>(planes.layout)};
}

// Sums of nothing are the business of the columns engine.
template <int Rank>
bool takes(const Place& place, const Tensor& operand, const Geometry<Rank>& geometry, int64_t groups, int64_t inputs,
           int64_t outputs) {
  return place.cuda && cuda::direct_takes(operand.scalar_type(), groups, inputs, outputs) &&
         !may_overflow_index(geometry) && geometry.tap_numel() > 0 && geometry.position_numel() > 0 &&
         geometry.image_numel() > 0;
}

// Tells a report, if one is wanted, of the plan.
void report(const cuda::DirectPlan& plan, int64_t) {
  LegacyReport* const report = LegacyReport::wanted();
  if (report == nullptr) return;
  report->engine(std::to_string(plan.rows) + "x" + std::to_string(plan.columns), plan.blocks, /*thread_bytes=*/0,
                 plan.workspace_bytes, kWhy, 1, plan.splits);
}

template <int Rank>
bool correlate(const Place& place, bool backward, const Tensor& source, const Tensor& weight, const Bias& bias,
               const Geometry<Rank>& geometry, int64_t groups, Tensor& result) {
  const int64_t inputs = weight.size(1), outputs = weight.size(0) / groups;
  if (!takes(place, source, geometry, groups, inputs, outputs)) return false;
  const cuda::DirectCorrelation problem = {source.scalar_type(),
                                           backward,
                                           with_leading_axes<3>(geometry),
                                           operand_of(planes_of<Rank>(source, groups)),
                                           operand_of(weight_planes<Rank>(weight, groups, /*swap=*/backward)),
                                           operand_of(planes_of<Rank>(result, groups)),
                                           bias ? bias->data_ptr() : nullptr};
  const cuda::DirectPlan plan = cuda::correlate_direct(place.stream, problem, LegacyReport::wanted() == nullptr);
  if (plan.fits) report(plan, inputs);
  return plan.fits;
}

}  // namespace

template <int Rank>
bool direct_conv(const Place& place, const Tensor& input, const Tensor& weight, const Bias& bias,
                 const Geometry<Rank>& geometry, int64_t groups, Tensor& output) {
  return correlate<Rank>(place, /*backward=*/false, input, weight, bias, geometry, groups, output);
}

template <int Rank>
bool direct_input_grad(const Place& place, const Tensor& grad_output, const Tensor& weight, const Bias& bias,
                       const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_input) {
  return correlate<Rank>(place, /*backward=*/true, grad_output, weight, bias, geometry, groups, grad_input);
}

template <int Rank>
bool direct_weight_grad(const Place& place, const Tensor& grad_output, const Tensor& input,
                        const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_weight) {
  const int64_t inputs = grad_weight.size(1), outputs = grad_weight.size(0) / groups;
  if (!takes(place, input, geometry, groups, inputs, outputs)) return false;
  const cuda::DirectWeightSums problem = {input.scalar_type(), with_leading_axes<3>(geometry),
                                          operand_of(planes_of<Rank>(grad_output, groups)),
                                          operand_of(planes_of<Rank>(input, groups)), grad_weight.data_ptr()};
  std::optional<Tensor> memory;  // torch's allocator keeps it for the stream after this has returned
  cuda::Workspace workspace;
  if (LegacyReport::wanted() == nullptr)
    workspace = [&](int64_t bytes) { return memory.emplace(empty_bytes(bytes, input)).data_ptr(); };
  const cuda::DirectPlan plan = cuda::weight_sums_direct(place.stream, problem, workspace_limit().cuda, workspace);
  if (plan.fits) report(plan, inputs);
  return plan.fits;
}

#else

template <int Rank>
bool direct_conv(const Place&, const Tensor&, const Tensor&, const Bias&, const Geometry<Rank>&, int64_t, Tensor&) {
  return false;
}
template <int Rank>
bool direct_input_grad(const Place&, const Tensor&, const Tensor&, const Bias&, const Geometry<Rank>&, int64_t,
                       Tensor&) {
  return false;
}
template <int Rank>
bool direct_weight_grad(const Place&, const Tensor&, const Tensor&, const Geometry<Rank>&, int64_t, Tensor&) {
  return false;
}

#endif

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                                 \
  template bool direct_conv<RANK>(const Place&, const Tensor&, const Tensor&, const Bias&, const Geometry<RANK>&,    \
                                  int64_t, Tensor&);                                                                 \
  template bool direct_input_grad<RANK>(const Place&, const Tensor&, const Tensor&, const Bias&,                     \
                                        const Geometry<RANK>&, int64_t, Tensor&);                                    \
  template bool direct_weight_grad<RANK>(const Place&, const Tensor&, const Tensor&, const Geometry<RANK>&, int64_t, \
                                         Tensor&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv
