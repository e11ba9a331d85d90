// How correlate_channels.cpp cuts up a problem.
#pragma once

#include "cpu/shared/tap_chunks.h"
#include "cpu/shared/terms.h"
#include "problem/correlation.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {

constexpr int64_t kBlockPositions = 192;  // of a task
constexpr int64_t kFewRunChannels = 8;    // fewer make runs that are not worth their set-up

// How a problem is cut up.
struct ChannelsPlan {
  int64_t terms;     // of a sum
  bool gathered;     // into lines
  bool dots;         // few rows: neighbouring terms are in the lanes instead
  TapChunks chunks;  // of a sum; one that is gathered has the terms of a single tap
  int64_t rows, panel_rows, panels, block_panels, panel_blocks;
  int64_t tile_rows, block_positions, position_blocks;
};

template <class Terms>
ChannelsPlan plan_of(const Terms& terms, const Correlation<3>& problem) {
  using T = typename Terms::T;
  const int64_t limit = workspace_limit().cpu, taps = problem.geometry.tap_numel(), channels = problem.channels();
  ChannelsPlan plan;
  plan.tile_rows = terms.tiles.rows;
  plan.terms = Terms::count(channels * taps);
  plan.gathered = (!std::is_same_v<T, typename Terms::From> && Terms::kHalves == 1) || channels % Terms::kHalves != 0 ||
                  channels < kFewRunChannels;
  plan.rows = problem.variants() * problem.rows();
  plan.dots = plan.rows <= kDotColumns && terms.tiles.dots[0] != nullptr;
  const int64_t most_terms = plan.dots || plan.gathered ? plan.terms : kChunkTerms;
  const int64_t tap_terms = plan.gathered ? plan.terms : channels / Terms::kHalves;
  const int64_t sums = plan.gathered ? 1 : taps;  // runs of tap_terms
  plan.chunks = {sums, tap_terms, most_terms, terms.tiles.depth};

  plan.panel_rows = plan.dots ? plan.rows : terms.most_lanes();
  plan.panels = ceil_div(plan.rows, plan.panel_rows);

  // What a position takes: its line, or its share of runs.
  const int64_t run_bytes = sizeof(Run<T>) / plan.tile_rows + sizeof(const T*) + 1;
  const int64_t position_bytes =
      plan.gathered ? plan.terms * static_cast<int64_t>(sizeof(T)) : sums * plan.chunks.per_tap * run_bytes;
  const int64_t positions = problem.batch() * problem.geometry.position_numel();
  const int64_t room =
      std::max<int64_t>(1, limit / 2 / std::max<int64_t>(1, position_bytes) / plan.tile_rows) * plan.tile_rows;
  const int64_t most = std::min(room, kBlockPositions);
  plan.position_blocks = ceil_div(positions, most);
  plan.block_positions = round_up(ceil_div(positions, plan.position_blocks), plan.tile_rows);
  plan.position_blocks = ceil_div(positions, plan.block_positions);
  plan.panel_blocks =
      std::clamp<int64_t>(ceil_div(kTasksPerProblem, plan.position_blocks * problem.groups()), 1, plan.panels);
  plan.block_panels = ceil_div(plan.panels, plan.panel_blocks);
  plan.panel_blocks = ceil_div(plan.panels, plan.block_panels);
  return plan;
}

}  // namespace unfoldconv::cpu
