// How correlate_transposed.cpp cuts up a problem.
#pragma once

#include <optional>

#include "cpu/correlate/correlate_engines.h"
#include "cpu/correlate/weight_rows.h"
#include "cpu/shared/panel_cost.h"
#include "cpu/shared/positions.h"
#include "cpu/shared/terms.h"

namespace unfoldconv::cpu {

constexpr int64_t kSumTerms = 640;         // of a chunk
constexpr int64_t kWeightRows = 48;        // transposed at a time
constexpr int64_t kMostPanels = 8;         // of a task: more hide no more of the transposing
constexpr double kTransposeVectors = 1.5;  // to transpose a row takes as long as to multiply so many vectors by it
constexpr int64_t kRowParts[] = {1, 2, 3, 4, 6, 8, 12, 16};

struct TransposedPlan {
  // Where a sum is cut: not by the batch, nor by the number of threads.
  int64_t taps, tap_terms, chunk, chunks;  // terms of a tap, and how many of these are a chunk
  // What a task has.
  int64_t block_lanes, blocks;  // positions
  int64_t panel_lanes, panels;  // of these
  int64_t task_rows, row_parts;
  int64_t transposed_rows, pitch;  // rows at a time, and terms from one of their lines to the next
  int64_t tap_pieces;              // at most, of one tap
};

// Nothing if no plan fits, which does not depend on the batch. fits(plan) is asked of panels and rows of a task.
template <class Terms, class Fits>
std::optional<TransposedPlan> transposed_plan(const Terms& terms, const Correlation<3>& problem, const Fits& fits) {
  const int64_t tile_rows = terms.tiles.rows, lanes = terms.tiles.lanes, threads = torch::stable::get_num_threads();
  const int64_t positions = problem.batch() * problem.geometry.position_numel(), vectors = ceil_div(positions, lanes);
  const int64_t rows = problem.rows(), tiles = ceil_div(rows, tile_rows), size = sizeof(typename Terms::T);
  TransposedPlan plan{};
  plan.taps = problem.geometry.tap_numel();
  plan.tap_terms = Terms::count(problem.channels());
  // Whole blocks of the micro-kernel, where a chunk has room for them at every tap.
  const int64_t most = kSumTerms / plan.taps, unit = most < kBlockTerms<float> ? kGatherTerms : kBlockTerms<float>;
  plan.chunk = std::min(plan.tap_terms, std::max(unit, most / unit * unit));
  plan.chunks = ceil_div(plan.tap_terms, plan.chunk);
  plan.transposed_rows = round_up(std::min(kWeightRows, rows), tile_rows);
  plan.pitch = line_pitch(plan.chunk * size) / size;
  plan.tap_pieces = most_pieces<3>(terms.most_lanes(), problem.geometry.positions) + kTileVectors;
  const auto cut = [&](int64_t of_block, int64_t parts) {
    plan.panels = ceil_div(of_block, terms.tiles.vectors);
    plan.panel_lanes = ceil_div(of_block, plan.panels) * lanes;
    plan.block_lanes = of_block * lanes;
    plan.task_rows = std::max<int64_t>(1, ceil_div(tiles, parts)) * tile_rows;
  };
  // With the widest panel, then with the one below that is no wider.
  cut(terms.tiles.vectors, std::end(kRowParts)[-1]);
  if (!fits(plan)) return std::nullopt;

  std::optional<TransposedPlan> best;
  double least = 0;
  for (int64_t most_panels = 1; most_panels <= kMostPanels; ++most_panels) {
    const int64_t least_blocks = std::max<int64_t>(1, ceil_div(vectors, most_panels * terms.tiles.vectors));
    for (const int64_t blocks : {least_blocks, round_up(least_blocks, threads)})
      for (const int64_t parts : kRowParts) {
        const int64_t of_block = std::max<int64_t>(1, ceil_div(vectors, blocks));
        cut(of_block, parts);
        if (!fits(plan)) continue;
        const double task =
            static_cast<double>(plan.task_rows) * (of_block + kNarrowing * plan.panels + kTransposeVectors) +
            kGatherRows * of_block;
        const double time = task * ceil_div(blocks * problem.groups() * parts, threads);
        if (!best || time < least) least = time, best = plan;
      }
  }
  best->blocks = ceil_div(positions, best->block_lanes);
  best->row_parts = ceil_div(rows, best->task_rows);
  return best;
}

}  // namespace unfoldconv::cpu
