#include "cuda/stem/stem_engine.h"

#include "cuda/stem/stem_launch.h"
#include "problem/planes.h"
#include "runtime/allocation.h"
#include "runtime/current_place.h"
#include "runtime/legacy_report.h"
#include "runtime/workspace.h"

namespace unfoldconv {

#ifdef UNFOLDCONV_WITH_CUDA

namespace {

constexpr const char* kWhy = "few channels: their terms lie side by side in shared memory";

template <int Rank>
cuda::DirectOperand operand_of(const Planes<Rank>& planes) {
  return {planes.data, with_leading_axes<3>(planes.layout)};
}

// Sums of nothing are the business of the columns engine.
template <int Rank>
bool takes(const Place& place, const Tensor& image, const Geometry<Rank>& geometry, int64_t groups, int64_t rows) {
  return place.cuda && cuda::stem_takes(image.scalar_type(), groups, image.size(1)) && rows > 0 &&
         !may_overflow_index(geometry) && geometry.tap_numel() > 0 && geometry.position_numel() > 0 &&
         geometry.image_numel() > 0;
}

bool as_tf32(const Tensor& image) { return image.scalar_type() == ScalarType::Float && float32_as_tf32(); }

// Tells a report, if one is wanted, of the plan.
void report(const cuda::StemPlan& plan) {
  LegacyReport* const report = LegacyReport::wanted();
  if (report == nullptr) return;
  report->engine(std::to_string(plan.rows) + "x" + std::to_string(plan.positions), plan.blocks,
                 /*thread_bytes=*/0, plan.workspace_bytes, kWhy);
}

}  // namespace

template <int Rank>
bool stem_conv(const Place& place, const Tensor& input, const Tensor& weight, const Bias& bias,
               const Geometry<Rank>& geometry, int64_t groups, Tensor& output) {
  if (!takes(place, input, geometry, groups, weight.size(0))) return false;
  const cuda::StemConvolution problem = {input.scalar_type(),
                                         as_tf32(input),
                                         with_leading_axes<3>(geometry),
                                         operand_of(planes_of<Rank>(input, 1)),
                                         operand_of(weight_planes<Rank>(weight, 1, /*swap=*/false)),
                                         operand_of(planes_of<Rank>(output, 1)),
                                         bias ? bias->data_ptr() : nullptr};
  const cuda::StemPlan plan = cuda::convolve_stem(place.stream, problem, LegacyReport::wanted() == nullptr);
  if (plan.fits) report(plan);
  return plan.fits;
}

template <int Rank>
bool stem_weight_grad(const Place& place, const Tensor& grad_output, const Tensor& input,
                      const Geometry<Rank>& geometry, int64_t groups, Tensor& grad_weight) {
  if (!takes(place, input, geometry, groups, grad_weight.size(0))) return false;
  const cuda::StemWeightSums problem = {input.scalar_type(),
                                        as_tf32(input),
                                        with_leading_axes<3>(geometry),
                                        operand_of(planes_of<Rank>(grad_output, 1)),
                                        operand_of(planes_of<Rank>(input, 1)),
                                        grad_weight.data_ptr()};
  std::optional<Tensor> memory;  // torch's allocator keeps it for the stream after this has returned
  cuda::Workspace workspace;
  if (LegacyReport::wanted() == nullptr)
    workspace = [&](int64_t bytes) { return memory.emplace(empty_bytes(bytes, input)).data_ptr(); };
  const cuda::StemPlan plan = cuda::weight_sums_stem(place.stream, problem, workspace_limit().cuda, workspace);
  if (plan.fits) report(plan);
  return plan.fits;
}

#else

template <int Rank>
bool stem_conv(const Place&, const Tensor&, const Tensor&, const Bias&, const Geometry<Rank>&, int64_t, Tensor&) {
  return false;
}
template <int Rank>
bool stem_weight_grad(const Place&, const Tensor&, const Tensor&, const Geometry<Rank>&, int64_t, Tensor&) {
  return false;
}

#endif

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                               \
  template bool stem_conv<RANK>(const Place&, const Tensor&, const Tensor&, const Bias&, const Geometry<RANK>&,    \
                                int64_t, Tensor&);                                                                 \
  template bool stem_weight_grad<RANK>(const Place&, const Tensor&, const Tensor&, const Geometry<RANK>&, int64_t, \
                                       Tensor&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv
