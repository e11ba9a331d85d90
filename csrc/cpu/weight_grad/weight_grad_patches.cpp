// The weight gradient with rows of the output in the lanes, of patches that are gathered (weight_grad_engines.h).
//
// A task (weight_grad_tasks.h) walks stretches of positions: gathers their patches for its channels and taps,
// transposes their grad_output for its rows, and adds the product of the two to its sums, which lie as [panel of
// rows][channel and tap][lane].
#include "cpu/weight_grad/weight_grad_tasks.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kChunkSegments = 4;    // of positions that are multiplied at a time, at most
constexpr int64_t kChunkPatches = 1024;  // channels and taps of a task times those segments, at most
constexpr int64_t kLeastPatches = 96;    // fewer are not worth transposing grad_output for
constexpr int64_t kBlockPanels = 8;      // of rows of a task

// How a problem is cut up.
struct Plan {
  int64_t segment;  // positions, counted over all images, that are gathered at a time
  int64_t chunk_segments;
  int64_t panel_rows;
  Blocks patches, panels;  // panels of rows
  Splits splits;           // of segments
  int64_t tap_pieces;

  int64_t blocks() const { return patches.count() * panels.count(); }
};

template <class Terms, int Rank>
Plan plan_of(const Terms& terms, const WeightSums<Rank>& problem) {
  using Sum = typename Terms::Sum;
  const int64_t limit = workspace_limit().cpu, positions = problem.batch() * problem.geometry.position_numel();
  const int64_t tile_rows = terms.tiles.rows, patches = problem.channels() * problem.geometry.tap_numel();
  Plan plan;
  plan.segment = std::min(int64_t{terms.tiles.lanes} * kTileVectors, terms.width(positions));
  plan.tap_pieces = most_pieces<Rank>(plan.segment, problem.geometry.positions) + kTileVectors;
  plan.panel_rows = std::min(terms.most_lanes(), terms.width(problem.rows()));
  const int64_t panels = ceil_div(problem.rows(), plan.panel_rows);

  // What is gathered is multiplied by one panel after the other. For a single panel a task takes more patches, because
  // each of its kind transposes grad_output again.
  plan.chunk_segments = panels == 1 ? kChunkSegments / 2 : kChunkSegments;
  const int64_t chunk_bytes = plan.segment * plan.chunk_segments * static_cast<int64_t>(sizeof(typename Terms::T));
  const int64_t most_patches =
      std::max<int64_t>(1, std::min(kChunkPatches / plan.chunk_segments, limit / 8 / chunk_bytes) / tile_rows) *
      tile_rows;
  const int64_t panel_bytes = most_patches * plan.panel_rows * static_cast<int64_t>(sizeof(Sum));
  plan.panels = cut(panels, ceil_div(panels, std::clamp<int64_t>(limit / 4 / panel_bytes, 1, kBlockPanels)));
  // More tasks by sums over fewer images first, then by smaller blocks.
  const int64_t others = problem.groups() * plan.panels.count(), least = ceil_div(patches, most_patches);
  plan.splits = split_sums<Sum>(problem, others * least, ceil_div(positions, plan.segment), 2 * plan.chunk_segments);
  const int64_t wanted =
      std::min(ceil_div(kTasksPerProblem, others * plan.splits.count), std::max<int64_t>(1, patches / kLeastPatches));
  plan.patches = cut(patches, std::max(least, wanted), tile_rows);
  return plan;
}

template <class Terms, int Rank>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  T *patches, *grads;
  Sum *sums, *result;
  PositionPiece<Rank>* positions;
  TapPieces* taps;
  Piece* pieces;
  Run<T>* runs;
};

// grad_output of one segment and panel of rows as [terms, lanes].
template <class Terms, int Rank>
void pack_grads(const Terms& terms, const WeightSums<Rank>& problem, const PositionPiece<Rank>* pieces, int count,
                bool line, int64_t group, int64_t row, int64_t lanes, int64_t width, typename Terms::T* to) {
  using From = typename Terms::From;
  const PlaneLayout<Rank>& layout = problem.grad_output.layout;
  const int64_t step = layout.axis_stride[Rank - 1];
  const From* const base =
      reinterpret_cast<const From*>(problem.grad_output.data) + group * layout.stride[1] + row * layout.stride[2];
  const int64_t length = pieces[count - 1].lane + pieces[count - 1].length;
  for (int piece = 0, next; piece < count; piece = next) {
    int64_t positions = pieces[piece].length;
    // The positions of an image may lie in a line.
    for (next = piece + 1; line && next < count && pieces[next].image == pieces[piece].image; ++next)
      positions += pieces[next].length;
    const From* const from = base + offset_of<Rank>(pieces[piece], layout);
    if constexpr (Terms::kHalves == 1) {
      terms.pack.transpose({from, layout.stride[2], step, lanes, positions, width}, to + pieces[piece].lane * width,
                           width);
    } else {
      // Pairs may reach from one piece into the next, and beyond the last.
      int64_t first = 0;
      auto* const halves = reinterpret_cast<uint16_t*>(to);
      const auto put = [&](int64_t i) {
        const int64_t lane = pieces[piece].lane + i;
        uint16_t* const row_of_pairs = halves + lane / 2 * 2 * width + lane % 2;
        for (int64_t m = 0; m < width; ++m)
          row_of_pairs[2 * m] =
              m < lanes ? reinterpret_cast<const uint16_t*>(from)[m * layout.stride[2] + i * step] : uint16_t{0};
      };
      if (pieces[piece].lane % 2) put(first++);
      const int64_t pairs = (positions - first) / 2;
      if (pairs > 0)
        terms.pack.transpose({from + first * step, layout.stride[2], step, lanes, 2 * pairs, width},
                             to + (pieces[piece].lane + first) / 2 * width, width);
      first += 2 * pairs;
      if (first < positions) put(first);
    }
  }
  if (Terms::kHalves == 2 && length % 2 != 0)
    for (int64_t m = 0; m < width; ++m) reinterpret_cast<uint16_t*>(to)[length / 2 * 2 * width + 2 * m + 1] = 0;
}

template <class Terms, int Rank>
bool run(const Terms& terms, const WeightSums<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  const Plan plan = plan_of(terms, problem);
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>& image = problem.image.layout;
  const int64_t channels = problem.channels(), taps = geometry.tap_numel();
  const int64_t positions = problem.batch() * geometry.position_numel();
  const int64_t segment_terms = plan.segment / Terms::kHalves;
  const int64_t segment_patches = plan.patches.size * segment_terms;  // elements of what one segment gathers
  const int64_t panel_sums = plan.patches.size * plan.panel_rows;
  const auto carve = [&](Carver& carver) {
    return Buffers<Terms, Rank>{carver.take<T>(plan.chunk_segments * segment_patches),
                                carver.take<T>(plan.chunk_segments * segment_terms * plan.panel_rows),
                                carver.take<Sum>(plan.panels.size * panel_sums),
                                carver.take<Sum>(terms.tiles.lanes * plan.patches.size),
                                carver.take<PositionPiece<Rank>>(plan.chunk_segments * plan.tap_pieces),
                                carver.take<TapPieces>(taps),
                                carver.take<Piece>(taps * plan.tap_pieces),
                                carver.take<Run<T>>(plan.chunk_segments)};
  };
  const bool line = is_line<Rank>(problem.grad_output.layout, geometry.positions);

  const auto body = [&](auto task, const auto& buffers) {
    const Range patches = task.next(plan.patches), panels = task.next(plan.panels);
    for (int64_t segment = task.units.begin; segment < task.units.end; segment += plan.chunk_segments) {
      const int64_t segments = std::min(plan.chunk_segments, task.units.end - segment);
      int pieces[kChunkSegments];
      const T* run_rows[kChunkSegments][kMostTileRows<T>];
      for (int64_t s = 0; s < segments; ++s) {
        const int64_t first = (segment + s) * plan.segment;
        const int64_t length = std::min(plan.segment, positions - first);
        PositionPiece<Rank>* const at = buffers.positions + s * plan.tap_pieces;
        pieces[s] = split_positions<Rank>(first, length, geometry.positions, at);
        Piece* next = buffers.pieces;
        for (int64_t tap = 0; tap < taps; ++tap)
          next = pieces_of_tap<Rank>(task.taps[tap], geometry, image, at, pieces[s], terms.tiles.lanes,
                                     buffers.taps[tap], next);
        T* const rows = buffers.patches + s * segment_patches;
        terms.pack.rows(
            {reinterpret_cast<const From*>(problem.image.data) + task.group * image.stride[1], image.stride[2],
             geometry.stride[Rank - 1] * image.axis_stride[Rank - 1], channels, taps, patches.begin, patches.size(),
             buffers.taps, static_cast<int>(plan.segment / terms.tiles.lanes)},
            rows);
        for (int64_t i = 0; i < terms.tiles.rows; ++i) run_rows[s][i] = rows + i * segment_terms;
        buffers.runs[s] = {run_rows[s], s * segment_terms, Terms::count(length),
                           (s + 1) * segment_terms % kBlockTerms<T> == 0};
      }
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const int64_t row = panel * plan.panel_rows, lanes = std::min(plan.panel_rows, problem.rows() - row);
        const int64_t width = terms.width(lanes);
        for (int64_t s = 0; s < segments; ++s)
          pack_grads(terms, problem, buffers.positions + s * plan.tap_pieces, pieces[s], line, task.group, row, lanes,
                     width, buffers.grads + s * segment_terms * width);
        Sum* const sums = buffers.sums + (panel - panels.begin) * panel_sums;
        for (int64_t patch = 0; patch < patches.size(); patch += terms.tiles.rows) {
          const int64_t tile_rows = std::min<int64_t>(terms.tiles.rows, patches.size() - patch);
          terms.multiply(
              width, tile_rows,
              {buffers.runs, segments, patch * segment_terms, buffers.grads, width, width, sums + patch * width, width,
               segment == task.units.begin ? Start::zero : Start::sum, nullptr});
        }
      }
    }
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const int64_t row = panel * plan.panel_rows, lanes = std::min(plan.panel_rows, problem.rows() - row);
      // Patches are channels and taps in the order of the weight.
      task.write_lanes(buffers.sums + (panel - panels.begin) * panel_sums, lanes, 1, patches.size(), buffers.result,
                       row * plan.patches.total + patches.begin, plan.patches.total);
    }
  };
  return run_weight_tasks(terms, problem, plan.splits, plan.blocks(), Engine::positions, plan.panel_rows,
                          "patches are gathered, because rows of the output are short", carve, body);
}

}  // namespace

bool weight_sums_of_patches(const WeightSums<3>& problem) {
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
