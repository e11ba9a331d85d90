// The gradient of a weight as an implicit matrix product.
#ifdef UNFOLDCONV_WITH_CUDA

#include "cuda/implicit_gemm/implicit_gemm_engine.h"
#include "cuda/implicit_gemm/implicit_gemm_layouts.h"
#include "cuda/shared/float_kernels.h"
#include "cuda/shared/launch_job.h"
#include "runtime/current_place.h"
#include "runtime/workspace.h"

namespace unfoldconv {
namespace {

using namespace gemm;

constexpr const char* kWhyPieces = "pieces of channels are copied to shared memory as they lie, a tile at a time";
constexpr const char* kWhyGathered = "patches are gathered in shared memory, a tile at a time";

class GemmWeightGradJob final : public LaunchJob {
 public:
  explicit GemmWeightGradJob(const WeightGrad<3>& problem) {
    const Planes<3>&image = problem.image, &grad_output = problem.grad_output;
    const Geometry<3>& geometry = problem.geometry;
    gemm_.dtype = image.dtype;
    gemm_.tf32 = image.dtype == ScalarType::Float && float32_as_tf32();
    gemm_.image = image.data;
    gemm_.image_layout = image.layout;
    gemm_.grad_output = grad_output.data;
    gemm_.grad_layout = grad_output.layout;
    gemm_.geometry = geometry;
    gemm_.pieces = channels_in_pieces(image, geometry.image) && channels_in_pieces(grad_output, geometry.positions);
    gemm_.image_gather = gather_of(image, geometry.image, is_pointwise(geometry));
    gemm_.grad_gather = gather_of(grad_output, geometry.positions, true);
    gemm_.grad_weight = problem.grad_weight;
    const int64_t split_bytes = problem.numel() * element_size(compute_dtype(image.dtype));
    cuda::plan_weight_sums(gemm_, workspace_limit().cuda / split_bytes);

    const cuda::GemmTiles tiles = cuda::weight_tiles(gemm_);
    plan_.why = gemm_.pieces ? kWhyPieces : kWhyGathered;
    plan_.tile_rows = tiles.rows, plan_.tile_lanes = tiles.positions;
    plan_.tasks = gemm_.splits * tiles.blocks;
    plan_.shared_bytes = gemm_.splits > 1 ? gemm_.splits * split_bytes : 0;
    plan_.splits = gemm_.splits;
  }

 private:
  void enqueue(void* stream, char*, char* partial) const override {
    cuda::GemmWeightSums gemm = gemm_;
    gemm.partial = gemm.splits > 1 ? partial : nullptr;
    cuda::sum_weights(stream, gemm);
  }

  cuda::GemmWeightSums gemm_{};
};

}  // namespace

const char* decline_implicit_gemm(const OneImage<WeightGrad<3>>& problem) {
  if (!cuda::has_float_kernels(problem->image.dtype)) return cuda::kNoFloatKernels;
  const double rows = static_cast<double>(problem->rows()) * problem->groups();
  return fits_32_bits(problem->image, problem->geometry, rows) ? nullptr : kTooLarge;
}

const char* plan_implicit_gemm(const WeightGrad<3>& problem, const Call&, JobSlot& slot) {
  slot.emplace<GemmWeightGradJob>(problem);
  return nullptr;
}

}  // namespace unfoldconv

#endif
