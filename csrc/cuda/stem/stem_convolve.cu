// The forward pass of few channels: how it is cut up, and which kernel (stem_convolve.cuh).
#include "cuda/stem/stem_convolve.cuh"

namespace unfoldconv::cuda {
namespace {

struct Layout {
  int64_t weights_at, box_at, bytes;
};

template <class T>
Layout layout_of(const StemTiling& tiling, int64_t tile_rows) {
  Layout result;
  result.weights_at = round_up((kStemPositions + 2 * int64_t{tiling.padded_terms}) * int64_t{sizeof(int)}, kPieceBytes);
  const int64_t weights = tile_rows * StemRows::pitch<T>(tiling.padded_terms) * sizeof(T);
  result.box_at = result.weights_at + round_up(weights, kPieceBytes);
  const int64_t box = int64_t{tiling.lines} * tiling.pitch * sizeof(T);
  result.bytes = result.box_at + std::max<int64_t>(StemStaging<T>::kBytes, round_up(box, kPieceBytes));
  return result;
}

struct Plan : StemPlan {
  ConvolveParameters parameters;
};

template <class T>
Plan make_plan(const StemConvolution& problem) {
  constexpr int64_t most_tiles_of_a_job = 16;
  const int64_t blocks_that_fill_a_gpu = 8 * limits.busy;
  Plan plan{};
  ConvolveParameters& p = plan.parameters;
  if (largest_offset(problem.weight.layout, problem.geometry.kernel) > limits.index) return plan;
  const int64_t rows = problem.output.layout.count[2];
  const int64_t tile_rows = round_up(ceil_div(rows, ceil_div(rows, kStemRows<T>)), 16);
  const StemCut cut =
      cut_stem({problem.dtype, problem.geometry, problem.image, problem.output, kStemPositions, 1 << 15},
               [&](const StemTiling& tiling) { return layout_of<T>(tiling, tile_rows).bytes <= kSharedBytes; });
  if (!cut.fits) return plan;
  p.tiling = cut.tiling, p.output = cut.rows;
  finish_tiling(p.tiling, problem.image.layout.count[0]);
  const auto& [count, stride, axis_stride] = problem.weight.layout;
  p.weight_row = stride[1];
  p.weight_stride[0] = static_cast<int>(stride[2]);
  for (int axis = 0; axis < 3; ++axis) p.weight_stride[1 + axis] = static_cast<int>(axis_stride[axis]);
  p.rows = static_cast<int>(rows), p.tile_rows = static_cast<int>(tile_rows);
  const int64_t row_tiles = ceil_div(rows, tile_rows);
  p.row_tiles = Divider<int64_t>(row_tiles);
  p.tiles_of_job = static_cast<int>(
      std::clamp<int64_t>(p.tiling.tile_count * row_tiles / blocks_that_fill_a_gpu, 1, most_tiles_of_a_job));
  p.jobs = row_tiles * ceil_div(p.tiling.tile_count, p.tiles_of_job);
  const Layout layout = layout_of<T>(p.tiling, tile_rows);
  p.weights_at = static_cast<int>(layout.weights_at), p.box_at = static_cast<int>(layout.box_at);
  plan.fits = true;
  plan.positions = p.tiling.tile_positions(), plan.rows = tile_rows;
  plan.terms = p.tiling.chunk_terms, plan.chunks = p.tiling.chunk_count;
  plan.blocks = p.jobs, plan.shared_bytes = layout.bytes;
  return plan;
}

// Whether the terms of every chunk of every row are whole pieces.
bool weight_in_pieces(const StemConvolution& problem, const StemTiling& tiling) {
  const auto& [count, stride, axis_stride] = problem.weight.layout;
  const int64_t piece = kPieceBytes / element_size(problem.dtype);
  const int64_t size[] = {count[2], problem.geometry.kernel[0], problem.geometry.kernel[1], problem.geometry.kernel[2]};
  const int64_t strides[] = {stride[2], axis_stride[0], axis_stride[1], axis_stride[2]};
  const int chunk[] = {tiling.chunk_channels, tiling.chunk_taps[0], tiling.chunk_taps[1], tiling.chunk_taps[2]};
  int64_t step = 1;
  bool result = reinterpret_cast<uintptr_t>(problem.weight.data) % kPieceBytes == 0 && stride[1] % piece == 0;
  for (int i = 3; i >= 0; --i) {
    result &= size[i] == 1 || strides[i] == step;
    if (chunk[i] < size[i]) result &= chunk[i] * step % piece == 0;
    step *= size[i];
  }
  return result && step % piece == 0;
}

}  // namespace

std::shared_ptr<const StemPlan> plan_stem(const StemConvolution& problem) {
  static PlanCache<std::shared_ptr<const Plan>> plans;
  PlanKey key = key_of(problem.dtype, problem.geometry, problem.image, problem.output);
  key.add(problem.weight.layout);
  return plans.get(key, [&] {
    std::shared_ptr<const Plan> plan;
    dispatch_float(problem.dtype, [&](auto type) {
      plan = std::make_shared<const Plan>(make_plan<typename decltype(type)::type>(problem));
    });
    return plan;
  });
}

void convolve_stem(void* stream, const StemConvolution& problem, const StemPlan& plan) {
  ConvolveParameters parameters = static_cast<const Plan&>(plan).parameters;
  fit_to_memory(parameters.tiling, parameters.output, problem.dtype, problem.image, problem.output);
  parameters.weight_pieces = weight_in_pieces(problem, parameters.tiling);
  dispatch_float(problem.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (std::is_same_v<T, float>) {
      if (problem.tf32) return launch_convolve<T, true>(stream, problem, plan, parameters);
    }
    launch_convolve<T, false>(stream, problem, plan, parameters);
  });
}

}  // namespace unfoldconv::cuda
