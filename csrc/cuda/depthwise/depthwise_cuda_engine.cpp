#include "cuda/depthwise/depthwise_cuda_engine.h"

#ifdef UNFOLDCONV_WITH_CUDA

#include <memory>

#include "cuda/depthwise/depthwise_launch.h"
#include "cuda/depthwise/operand_of.h"
#include "cuda/shared/launch_job.h"
#include "runtime/workspace.h"

namespace unfoldconv {
namespace {

constexpr const char* kWhy = "few channels per group: matrix products would be mostly empty";

const char* decline(ScalarType dtype, const Geometry<3>& geometry, int64_t groups, int64_t inputs, int64_t outputs) {
  if (!cuda::has_float_kernels(dtype)) return cuda::kNoFloatKernels;
  if (inputs == 0 || outputs == 0) return "groups without channels fall through to the columns engine";
  if (!cuda::direct_suits(groups, inputs, outputs))
    return "groups of more than 8 channels are better multiplied as matrices";
  if (geometry.tap_numel() == 0 || geometry.position_numel() == 0 || geometry.image_numel() == 0)
    return "empty windows and images fall through to the columns engine";
  return nullptr;
}

const char* decline(const Correlation<3>& problem) {
  if (problem.phase) return "the kernels compute an input gradient as a whole, not by phases";
  return decline(problem.image.dtype, problem.geometry, problem.groups(), problem.channels(), problem.rows());
}

const char* decline(const InputGrad<3>& problem) {
  const auto& count = problem.grad_input.layout.count;
  return decline(problem.grad_output.dtype, problem.geometry, count[1], count[2], problem.grad_output.layout.count[2]);
}

const char* decline(const WeightGrad<3>& problem) {
  return decline(problem.image.dtype, problem.geometry, problem.groups(), problem.channels(), problem.rows());
}

int64_t channels_of(const Correlation<3>& problem) { return problem.channels(); }
int64_t channels_of(const InputGrad<3>& problem) { return problem.grad_input.layout.count[2]; }
int64_t channels_of(const WeightGrad<3>& problem) { return problem.channels(); }

template <class Problem>
const char* decline_depthwise(const Problem& problem) {
  if (channels_of(problem) != 1) return "groups have more than one channel";
  return decline(problem);
}

template <class Problem>
const char* decline_grouped(const Problem& problem) {
  if (channels_of(problem) == 1) return "groups have a single channel";
  return decline(problem);
}

void enqueue_direct(void* stream, const cuda::DirectCorrelation& problem, const cuda::DirectPlan& plan, void*) {
  cuda::correlate_direct(stream, problem, plan);
}

void enqueue_direct(void* stream, const cuda::DirectWeightSums& problem, const cuda::DirectPlan& plan, void* sums) {
  cuda::weight_sums_direct(stream, problem, plan, sums);
}

template <class Problem>
class DirectJob final : public LaunchJob {
 public:
  DirectJob(const Problem& problem, std::shared_ptr<const cuda::DirectPlan> cut)
      : problem_(problem), cut_(std::move(cut)) {
    plan_.why = kWhy;
    plan_.tile_rows = cut_->rows, plan_.tile_lanes = cut_->columns;
    plan_.tasks = cut_->blocks;
    plan_.shared_bytes = cut_->workspace_bytes;
    plan_.splits = cut_->splits;
  }

 private:
  void enqueue(void* stream, char*, char* sums) const override { enqueue_direct(stream, problem_, *cut_, sums); }

  const Problem problem_;
  const std::shared_ptr<const cuda::DirectPlan> cut_;
};

template <class Problem>
const char* make_job(const Problem& problem, std::shared_ptr<const cuda::DirectPlan> cut, JobSlot& slot) {
  if (!cut->fits) return "what a tile reads does not fit into the shared memory of a block";
  slot.emplace<DirectJob<Problem>>(problem, std::move(cut));
  return nullptr;
}

const char* plan_correlation(const Planes<3>& source, const Planes<3>& weight, const Planes<3>& result,
                             const Geometry<3>& geometry, const char* bias, bool backward, JobSlot& slot) {
  const cuda::DirectCorrelation problem = {source.dtype,       backward,           geometry, operand_of(source),
                                           operand_of(weight), operand_of(result), bias};
  return make_job(problem, cuda::plan_direct(problem), slot);
}

}  // namespace

const char* decline_direct_depthwise(const OneImage<Correlation<3>>& problem) { return decline_depthwise(*problem); }
const char* decline_direct_depthwise(const OneImage<InputGrad<3>>& problem) { return decline_depthwise(*problem); }
const char* decline_direct_depthwise(const OneImage<WeightGrad<3>>& problem) { return decline_depthwise(*problem); }

const char* decline_direct_grouped(const OneImage<Correlation<3>>& problem) { return decline_grouped(*problem); }
const char* decline_direct_grouped(const OneImage<InputGrad<3>>& problem) { return decline_grouped(*problem); }
const char* decline_direct_grouped(const OneImage<WeightGrad<3>>& problem) { return decline_grouped(*problem); }

const char* plan_direct(const Correlation<3>& problem, const Call&, JobSlot& slot) {
  return plan_correlation(problem.image, problem.weight, problem.output, problem.geometry, problem.bias,
                          /*backward=*/false, slot);
}

const char* plan_direct(const InputGrad<3>& problem, const Call&, JobSlot& slot) {
  return plan_correlation(problem.grad_output, problem.weight, problem.grad_input, problem.geometry, problem.bias,
                          /*backward=*/true, slot);
}

const char* plan_direct(const WeightGrad<3>& problem, const Call&, JobSlot& slot) {
  const cuda::DirectWeightSums sums = {problem.image.dtype, problem.geometry, operand_of(problem.grad_output),
                                       operand_of(problem.image), problem.grad_weight};
  return make_job(sums, cuda::plan_direct(sums, workspace_limit().cuda), slot);
}

}  // namespace unfoldconv

#endif
