// The weight gradient of few channels: how it is cut up, and which kernel (stem_weight_grad.cuh).
#include "cuda/stem/stem_weight_grad.cuh"

namespace unfoldconv::cuda {
namespace {

struct Layout {
  int64_t gradient_at, box_at, bytes;
};

// How many warps share the terms of a chunk.
int term_warps_of(int64_t terms) { return terms <= kWarpTerms ? 1 : terms <= 2 * kWarpTerms ? 2 : kStemWarps; }

template <class T>
Layout layout_of(const StemTiling& tiling, bool rows_innermost) {
  constexpr int64_t by_position = kStemDepth<T> * StemRows::pitch<T>(kStemRows<T>);
  constexpr int64_t by_row = kStemRows<T> * StemRows::pitch<T>(kStemDepth<T>);
  Layout result;
  result.gradient_at = 2 * kStemDepth<T> * sizeof(int);
  result.box_at = result.gradient_at + (rows_innermost ? by_position : by_row) * int64_t{sizeof(T)};
  const int64_t box = int64_t{tiling.lines} * tiling.pitch * sizeof(T);
  const int warps = term_warps_of(tiling.chunk_terms);
  const int64_t sums = warps < kStemWarps ? int64_t{sizeof(WeightSum<T>)} * 32 * warps : 0;
  result.bytes = std::max(result.box_at + round_up(box, kPieceBytes), result.gradient_at + sums);
  return result;
}

struct Plan : StemPlan {
  WeightSumParameters parameters;
};

template <class T>
Plan make_plan(const StemWeightSums& problem, int64_t workspace_limit) {
  constexpr int64_t most_splits = 256;
  const int64_t blocks_that_fill_a_gpu = 4 * limits.busy;
  Plan plan{};
  WeightSumParameters& p = plan.parameters;
  const auto& layout = problem.gradient.layout;
  const int64_t rows = layout.count[2];
  const bool rows_innermost = rows_innermost_in(layout);
  const StemCut cut = cut_stem(
      {problem.dtype, problem.geometry, problem.image, problem.gradient, kStemDepth<T>, kStemWarps * kWarpTerms},
      [&](const StemTiling& tiling) { return layout_of<T>(tiling, rows_innermost).bytes <= kSharedBytes; });
  if (!cut.fits) return plan;
  p.tiling = cut.tiling, p.gradient = cut.rows;
  finish_tiling(p.tiling, layout.count[0]);
  const int64_t tile_rows = kStemRows<T>, row_tiles = ceil_div(rows, tile_rows);
  p.rows = static_cast<int>(rows), p.tile_rows = static_cast<int>(tile_rows);
  p.all_terms = static_cast<int>(p.tiling.channels * problem.geometry.tap_numel());
  p.term_warps = term_warps_of(p.tiling.chunk_terms);
  p.warp_terms = static_cast<int>(round_up(ceil_div(p.tiling.chunk_terms, p.term_warps), 8));
  p.row_tiles = Divider<int64_t>(row_tiles), p.chunks = Divider<int64_t>(p.tiling.chunk_count);
  const int64_t jobs = row_tiles * p.tiling.chunk_count, split_bytes = rows * p.all_terms * sizeof(Accumulator<T>);
  p.splits = std::min(
      {ceil_div(blocks_that_fill_a_gpu, jobs), workspace_limit / split_bytes, p.tiling.tile_count, most_splits});
  p.splits = std::max<int64_t>(p.splits, 1);
  p.jobs = jobs * p.splits;
  const Layout shared = layout_of<T>(p.tiling, rows_innermost);
  p.gradient_at = static_cast<int>(shared.gradient_at), p.box_at = static_cast<int>(shared.box_at);
  plan.fits = true;
  plan.positions = p.tiling.tile_positions(), plan.rows = tile_rows;
  plan.terms = p.tiling.chunk_terms, plan.chunks = p.tiling.chunk_count;
  plan.blocks = p.jobs, plan.shared_bytes = shared.bytes;
  plan.splits = p.splits, plan.workspace_bytes = p.splits > 1 ? p.splits * split_bytes : 0;
  return plan;
}

}  // namespace

std::shared_ptr<const StemPlan> plan_stem(const StemWeightSums& problem, int64_t workspace_limit) {
  static PlanCache<std::shared_ptr<const Plan>> plans;
  PlanKey key = key_of(problem.dtype, problem.geometry, problem.image, problem.gradient);
  key.add(workspace_limit);
  return plans.get(key, [&] {
    std::shared_ptr<const Plan> plan;
    dispatch_float(problem.dtype, [&](auto type) {
      plan = std::make_shared<const Plan>(make_plan<typename decltype(type)::type>(problem, workspace_limit));
    });
    return plan;
  });
}

void weight_sums_stem(void* stream, const StemWeightSums& problem, const StemPlan& plan, void* workspace) {
  WeightSumParameters parameters = static_cast<const Plan&>(plan).parameters;
  fit_to_memory(parameters.tiling, parameters.gradient, problem.dtype, problem.image, problem.gradient);
  dispatch_float(problem.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (std::is_same_v<T, float>) {
      if (problem.tf32) return launch_sums<T, true>(stream, problem, plan, parameters, workspace);
    }
    launch_sums<T, false>(stream, problem, plan, parameters, workspace);
  });
}

}  // namespace unfoldconv::cuda
