#include "cuda/stem/stem_engine.h"

#ifdef UNFOLDCONV_WITH_CUDA

#include <memory>

#include "cuda/depthwise/operand_of.h"
#include "cuda/shared/launch_job.h"
#include "cuda/stem/stem_launch.h"
#include "runtime/current_place.h"
#include "runtime/workspace.h"

namespace unfoldconv {
namespace {

constexpr const char* kWhy = "few channels: their terms lie side by side in shared memory";

// Both problems count their channels and rows alike.
template <class Problem>
const char* decline(const Problem& problem) {
  if (!cuda::has_float_kernels(problem.image.dtype)) return cuda::kNoFloatKernels;
  if (problem.groups() != 1) return "there are several groups of channels";
  if (problem.channels() > cuda::kMostStemChannels) return "more than 4 channels fill pieces of 16 bytes";
  if (problem.channels() == 0 || problem.rows() == 0) return "empty operands fall through to the columns engine";
  const Geometry<3>& geometry = problem.geometry;
  if (geometry.tap_numel() == 0 || geometry.position_numel() == 0 || geometry.image_numel() == 0)
    return "empty windows and images fall through to the columns engine";
  return nullptr;
}

bool as_tf32(const Planes<3>& image) { return image.dtype == ScalarType::Float && float32_as_tf32(); }

void enqueue_stem(void* stream, const cuda::StemConvolution& problem, const cuda::StemPlan& plan, void*) {
  cuda::convolve_stem(stream, problem, plan);
}

void enqueue_stem(void* stream, const cuda::StemWeightSums& problem, const cuda::StemPlan& plan, void* sums) {
  cuda::weight_sums_stem(stream, problem, plan, sums);
}

template <class Problem>
class StemJob final : public LaunchJob {
 public:
  StemJob(const Problem& problem, std::shared_ptr<const cuda::StemPlan> cut) : problem_(problem), cut_(std::move(cut)) {
    plan_.why = kWhy;
    plan_.tile_rows = cut_->rows, plan_.tile_lanes = cut_->positions;
    plan_.tasks = cut_->blocks;
    plan_.shared_bytes = cut_->workspace_bytes;
    plan_.splits = cut_->splits;
  }

 private:
  void enqueue(void* stream, char*, char* sums) const override { enqueue_stem(stream, problem_, *cut_, sums); }

  const Problem problem_;
  const std::shared_ptr<const cuda::StemPlan> cut_;
};

template <class Problem>
const char* make_job(const Problem& problem, std::shared_ptr<const cuda::StemPlan> cut, JobSlot& slot) {
  if (!cut->fits) return "what a tile of positions reads is too much for shared memory, or mostly read for nothing";
  slot.emplace<StemJob<Problem>>(problem, std::move(cut));
  return nullptr;
}

}  // namespace

const char* decline_stem(const OneImage<Correlation<3>>& problem) {
  if (problem->phase) return "phases of an input gradient are no first layer";
  return decline(*problem);
}

const char* decline_stem(const OneImage<WeightGrad<3>>& problem) { return decline(*problem); }

const char* plan_stem(const Correlation<3>& problem, const Call&, JobSlot& slot) {
  const cuda::StemConvolution convolution = {
      problem.image.dtype,        as_tf32(problem.image),     problem.geometry, operand_of(problem.image),
      operand_of(problem.weight), operand_of(problem.output), problem.bias};
  return make_job(convolution, cuda::plan_stem(convolution), slot);
}

const char* plan_stem(const WeightGrad<3>& problem, const Call&, JobSlot& slot) {
  const cuda::StemWeightSums sums = {problem.image.dtype,       as_tf32(problem.image),
                                     problem.geometry,          operand_of(problem.grad_output),
                                     operand_of(problem.image), problem.grad_weight};
  return make_job(sums, cuda::plan_stem(sums, workspace_limit().cuda), slot);
}

}  // namespace unfoldconv

#endif
