// The weight gradient of few channels: how it is cut up, and which kernel (stem_weight_grad.cuh).
#include "stem_weight_grad.cuh"

namespace unfoldconv::cuda {
namespace {

struct Layout {
  int64_t gradient_at, box_at, bytes;
};

// How many warps share the terms of a chunk.
int term_warps_of(int64_t terms) { return terms <= kWarpTerms ? 1 : terms <= 2 * kWarpTerms ? 2 : kStemWarps; }

template <class T>
Layout layout_of(const StemTiling& tiling, bool rows_adjoin) {
  constexpr int64_t by_position = kStemDepth<T> * StemRows::pitch<T>(kStemRows<T>);
  constexpr int64_t by_row = kStemRows<T> * StemRows::pitch<T>(kStemDepth<T>);
  Layout result;
  result.gradient_at = kStemDepth<T> * sizeof(int);
  result.box_at = result.gradient_at + (rows_adjoin ? by_position : by_row) * int64_t{sizeof(T)};
  const int64_t box = int64_t{tiling.lines} * tiling.pitch * sizeof(T);
  const int warps = term_warps_of(tiling.chunk_terms);
  const int64_t sums = warps < kStemWarps ? int64_t{sizeof(WeightSum<T>)} * 32 * warps : 0;
  result.bytes = std::max(result.box_at + round_up(box, kPieceBytes), result.gradient_at + sums);
  return result;
}

template <class T>
StemPlan make_plan(const StemWeightSums& problem, int64_t workspace_limit, WeightSumParameters& p) {
  constexpr int64_t blocks_that_fill_a_gpu = 512, most_splits = 256;
  StemPlan plan;
  const auto& layout = problem.gradient.layout;
  const int64_t rows = layout.count[2];
  const bool rows_adjoin = rows_adjoin_in(layout);
  const StemCut cut = cut_stem(
      {problem.dtype, problem.geometry, problem.image, problem.gradient, kStemDepth<T>, kStemWarps * kWarpTerms},
      [&](const StemTiling& tiling) { return layout_of<T>(tiling, rows_adjoin).bytes <= kSharedBytes; });
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
  p.splits = std::min({ceil_div(blocks_that_fill_a_gpu, jobs), workspace_limit / split_bytes, p.tiling.tile_count,
                       most_splits});
  p.splits = std::max<int64_t>(p.splits, 1);
  p.jobs = jobs * p.splits;
  const Layout shared = layout_of<T>(p.tiling, rows_adjoin);
  p.gradient_at = static_cast<int>(shared.gradient_at), p.box_at = static_cast<int>(shared.box_at);
  plan = {true, int64_t{p.tiling.tile[0]} * p.tiling.tile[1] * p.tiling.tile[2], tile_rows, p.tiling.chunk_terms,
          p.tiling.chunk_count, p.jobs, shared.bytes, p.splits, p.splits > 1 ? p.splits * split_bytes : 0};
  return plan;
}

}  // namespace

StemPlan weight_sums_stem(void* stream, const StemWeightSums& problem, int64_t workspace_limit,
                          const Workspace& workspace) {
  StemPlan plan;
  dispatch_float(problem.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    WeightSumParameters p;
    plan = make_plan<T>(problem, workspace_limit, p);
    if (!plan.fits || !workspace) return;
    void* const sums = plan.splits > 1 ? workspace(plan.workspace_bytes) : nullptr;
    if constexpr (std::is_same_v<T, float>) {
      if (problem.tf32) return launch_sums<T, true>(stream, problem, plan, p, sums);
    }
    launch_sums<T, false>(stream, problem, plan, p, sums);
  });
  return plan;
}

}  // namespace unfoldconv::cuda
