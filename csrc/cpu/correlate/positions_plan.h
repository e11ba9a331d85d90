// How correlate_positions.cpp cuts up a problem.
#pragma once

#include "cpu/correlate/weight_rows.h"
#include "cpu/shared/panel_cost.h"
#include "cpu/shared/positions.h"
#include "cpu/shared/tap_chunks.h"
#include "cpu/shared/terms.h"
#include "problem/correlation.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {

// Of a panel chunk: a good part of a second-level cache.
constexpr int64_t kPanelBytes = 256 << 10;
// To gather an element of a panel takes as long as to pack so many bytes of a weight.
constexpr int64_t kGatherBytes = 32;

// How a problem is cut up.
struct PositionsPlan {
  bool taps_first;
  int64_t panel_lanes, panels;
  int64_t terms;     // of a sum
  TapChunks chunks;  // of a sum; channels first, its terms are those of a single tap
  int64_t rows, block_rows, row_blocks;
  int64_t block_groups, group_blocks;
  int64_t tap_pieces;  // at most, of one tap
};

// The most terms of a chunk. Not by the lanes of a panel at hand: where a sum is cut must not depend on the batch.
template <class Terms>
int64_t most_terms(const Terms& terms) {
  const int64_t panel_bytes = std::min(kPanelBytes, workspace_limit().cpu / 4);
  return std::max<int64_t>(1, panel_bytes / (terms.most_lanes() * sizeof(typename Terms::T)));
}

template <class Terms>
PositionsPlan plan_of(const Terms& terms, const Correlation<3>& problem) {
  const auto& [count, stride, axis_stride] = problem.output.layout;
  const int64_t limit = workspace_limit().cpu;
  PositionsPlan plan;
  const int64_t positions = count[0] * problem.geometry.position_numel();
  plan.taps_first = taps_are_lines<Terms, 3>(problem.weight);
  plan.rows = problem.variants() * count[2];
  const int64_t tiles = ceil_div(plan.rows, terms.tiles.rows);
  const Cut cut = best_cut(ceil_div(positions, int64_t{terms.tiles.lanes}), terms.tiles.vectors, count[1], plan.rows,
                           std::min(kTasksPerProblem, ceil_div(tiles, 4)));
  plan.panel_lanes = cut.panel_vectors * terms.tiles.lanes;
  plan.panels = ceil_div(positions, plan.panel_lanes);
  plan.tap_pieces = most_pieces<3>(plan.panel_lanes, problem.geometry.positions) + kTileVectors;
  plan.terms = Terms::count(problem.image.layout.count[2] * problem.geometry.tap_numel());
  const int64_t taps = problem.geometry.tap_numel(), most = most_terms(terms), depth = terms.tiles.depth;
  if (plan.taps_first)
    plan.chunks = {taps, plan.terms / taps, std::min(most, kChunkTerms), depth};
  else
    plan.chunks = {1, plan.terms, most, depth};
  // Panels first, then groups, then rows, which gather the same panel again.
  plan.group_blocks = std::min(count[1], ceil_div(kTasksPerProblem, plan.panels));
  plan.block_groups = ceil_div(count[1], plan.group_blocks);
  plan.group_blocks = ceil_div(count[1], plan.block_groups);
  int64_t parts = cut.parts;
  if (plan.chunks.count > 1) {
    const int64_t tile_bytes = terms.tiles.rows * plan.panel_lanes * sizeof(typename Terms::Sum);
    parts = std::max(parts, ceil_div(tiles, std::max<int64_t>(1, limit / 4 / tile_bytes)));
  }
  plan.block_rows = ceil_div(tiles, parts) * terms.tiles.rows;
  plan.row_blocks = ceil_div(plan.rows, plan.block_rows);
  return plan;
}

}  // namespace unfoldconv::cpu
