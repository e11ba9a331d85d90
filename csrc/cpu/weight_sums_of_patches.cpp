// The weight gradient with rows of the output in the lanes, of patches that are gathered (weight_sums.h).
//
// A task owns a block of grad_weight, or its sum over some of the images. It walks stretches of positions: gathers
// their patches for its channels and taps, transposes their grad_output for its rows, and adds the product of the two
// to its sums, which lie as [panel of rows][channel and tap][lane]. Where several tasks sum one block, their sums are
// added in order at the end.
#include "../workspace.h"
#include "correlation_types.h"
#include "positions.h"
#include "weight_partials.h"
#include "weight_sums.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kChunkSegments = 4;    // of positions that are multiplied at a time, at most
constexpr int64_t kChunkPatches = 1024;  // channels and taps of a task times those segments, at most
constexpr int64_t kLeastPatches = 96;    // fewer are not worth transposing grad_output for
constexpr int64_t kBlockPanels = 8;      // of rows of a task

// How a problem is cut up.
struct Plan {
  int64_t segment, segments;  // positions, counted over all images, that are gathered at a time
  int64_t chunk_segments;
  int64_t patches, block_patches, patch_blocks;
  int64_t rows, panel_rows, panels, block_panels, panel_blocks;
  int64_t split, splits;  // segments that a task sums
  int64_t tap_pieces;
  int64_t block_sums;  // numbers in the sums of a task
};

template <class Terms, int Rank>
Plan plan_of(const Terms& terms, const WeightSums<Rank>& problem) {
  using Sum = typename Terms::Sum;
  const int64_t limit = workspace_limit().cpu, positions = problem.batch() * problem.geometry.position_numel();
  const int64_t tile_rows = terms.tiles.rows;
  Plan plan;
  plan.segment = std::min(int64_t{terms.tiles.lanes} * kTileVectors, terms.width(positions));
  plan.segments = ceil_div(positions, plan.segment);
  plan.tap_pieces = most_pieces<Rank>(plan.segment, problem.geometry.positions) + kTileVectors;
  plan.patches = problem.channels() * problem.geometry.tap_numel();
  plan.rows = problem.rows();
  plan.panel_rows = std::min(terms.most_lanes(), terms.width(plan.rows));
  plan.panels = ceil_div(plan.rows, plan.panel_rows);

  // What is gathered is multiplied by one panel after the other. For a single panel a task takes more patches, because
  // each of its kind transposes grad_output again.
  plan.chunk_segments = plan.panels == 1 ? kChunkSegments / 2 : kChunkSegments;
  const int64_t chunk_bytes = plan.segment * plan.chunk_segments * static_cast<int64_t>(sizeof(typename Terms::T));
  const int64_t most_patches =
      std::max<int64_t>(1, std::min(kChunkPatches / plan.chunk_segments, limit / 8 / chunk_bytes) / tile_rows) *
      tile_rows;
  const int64_t panel_bytes = most_patches * plan.panel_rows * static_cast<int64_t>(sizeof(Sum));
  const int64_t most_panels = std::clamp<int64_t>(limit / 4 / panel_bytes, 1, kBlockPanels);
  plan.panel_blocks = ceil_div(plan.panels, most_panels);
  plan.block_panels = ceil_div(plan.panels, plan.panel_blocks);
  // More tasks by sums over fewer images first, then by smaller blocks.
  const int64_t blocks = problem.groups() * plan.panel_blocks;
  plan.patch_blocks = ceil_div(plan.patches, most_patches);
  const int64_t weight_bytes = problem.groups() * plan.rows * plan.patches * static_cast<int64_t>(sizeof(Sum));
  const int64_t most_splits = std::clamp<int64_t>(limit / 2 / std::max<int64_t>(1, weight_bytes), 1,
                                                  ceil_div(plan.segments, 2 * plan.chunk_segments));
  plan.splits = std::min(most_splits, ceil_div(kTasksPerProblem, blocks * plan.patch_blocks));
  const int64_t wanted =
      std::min(ceil_div(kTasksPerProblem, blocks * plan.splits), std::max<int64_t>(1, plan.patches / kLeastPatches));
  plan.block_patches = round_up(ceil_div(plan.patches, std::max(plan.patch_blocks, wanted)), tile_rows);
  plan.patch_blocks = ceil_div(plan.patches, plan.block_patches);
  plan.block_sums = plan.block_panels * plan.block_patches * plan.panel_rows;
  plan.split = ceil_div(plan.segments, plan.splits);
  plan.splits = ceil_div(plan.segments, plan.split);
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
  using T = typename Terms::T;
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
  const int64_t groups = problem.groups(), channels = problem.channels(), taps = geometry.tap_numel();
  const int64_t positions = problem.batch() * geometry.position_numel();
  const int64_t segment_terms = plan.segment / Terms::kHalves;
  const auto carve = [&](Carver& carver) {
    return Buffers<Terms, Rank>{carver.take<T>(plan.chunk_segments * plan.block_patches * segment_terms),
                                carver.take<T>(plan.chunk_segments * segment_terms * plan.panel_rows),
                                carver.take<Sum>(plan.block_sums),
                                carver.take<Sum>(plan.panel_rows * plan.block_patches),
                                carver.take<PositionPiece<Rank>>(plan.chunk_segments * plan.tap_pieces),
                                carver.take<TapPieces>(taps),
                                carver.take<Piece>(taps * plan.tap_pieces),
                                carver.take<Run<T>>(plan.chunk_segments)};
  };
  Carver count;
  carve(count);
  if (count.bytes() > workspace_limit().cpu) return false;

  const int64_t numel = groups * plan.rows * plan.patches;
  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<Tap<Rank>>(taps), carver.take<Sum>(plan.splits > 1 ? plan.splits * numel : 0));
  };
  const int64_t tasks = plan.splits * groups * plan.panel_blocks * plan.patch_blocks;
  Carver shared_count;
  carve_shared(shared_count);
  if (Report* const report = Report::wanted()) {
    report->engine(Engine::positions, terms.tile_name(plan.panel_rows), tasks, count.bytes(), shared_count.bytes(),
                   "patches are gathered, because rows of the output are short");
    return true;
  }
  const Tensor shared = allocate_bytes(shared_count.bytes(), problem.grad_weight);
  Carver shared_carver(shared);
  const auto [tap_list, partial] = carve_shared(shared_carver);
  list_taps<Rank>(geometry, image.axis_stride, tap_list);
  const bool line = is_line<Rank>(problem.grad_output.layout, geometry.positions);
  From* const grad_weight = static_cast<From*>(problem.grad_weight.data_ptr());

  const bool serial = 2. * numel * positions < kSerialFlops;
  run_tasks(tasks, serial, problem.grad_weight, carve, [&](int64_t task, const auto& buffers) {
    const TileScope<T> scope(terms.tiles);
    const int64_t first_patch = task % plan.patch_blocks * plan.block_patches;
    const int64_t patches = std::min(plan.block_patches, plan.patches - first_patch);
    const int64_t first_panel = task / plan.patch_blocks % plan.panel_blocks * plan.block_panels;
    const int64_t end_panel = std::min(plan.panels, first_panel + plan.block_panels);
    const int64_t group = task / plan.patch_blocks / plan.panel_blocks % groups;
    const int64_t split = task / plan.patch_blocks / plan.panel_blocks / groups;
    const int64_t first_segment = split * plan.split, end_segment = std::min(plan.segments, first_segment + plan.split);

    for (int64_t segment = first_segment; segment < end_segment; segment += plan.chunk_segments) {
      const int64_t segments = std::min(plan.chunk_segments, end_segment - segment);
      int pieces[kChunkSegments];
      const T* run_rows[kChunkSegments][kMostTileRows<T>];
      for (int64_t s = 0; s < segments; ++s) {
        const int64_t first = (segment + s) * plan.segment;
        const int64_t length = std::min(plan.segment, positions - first);
        PositionPiece<Rank>* const at = buffers.positions + s * plan.tap_pieces;
        pieces[s] = split_positions<Rank>(first, length, geometry.positions, at);
        Piece* next = buffers.pieces;
        for (int64_t tap = 0; tap < taps; ++tap)
          next = pieces_of_tap<Rank>(tap_list[tap], geometry, image, at, pieces[s], terms.tiles.lanes,
                                     buffers.taps[tap], next);
        T* const rows = buffers.patches + s * plan.block_patches * segment_terms;
        terms.pack.rows({reinterpret_cast<const From*>(problem.image.data) + group * image.stride[1], image.stride[2],
                         geometry.stride[Rank - 1] * image.axis_stride[Rank - 1], channels, taps, first_patch, patches,
                         buffers.taps, static_cast<int>(plan.segment / terms.tiles.lanes)},
                        rows);
        for (int64_t i = 0; i < terms.tiles.rows; ++i) run_rows[s][i] = rows + i * segment_terms;
        buffers.runs[s] = {run_rows[s], s * segment_terms, Terms::count(length),
                           (s + 1) * segment_terms % kBlockTerms<T> == 0};
      }
      for (int64_t panel = first_panel; panel < end_panel; ++panel) {
        const int64_t row = panel * plan.panel_rows, lanes = std::min(plan.panel_rows, plan.rows - row);
        const int64_t width = terms.width(lanes);
        for (int64_t s = 0; s < segments; ++s)
          pack_grads(terms, problem, buffers.positions + s * plan.tap_pieces, pieces[s], line, group, row, lanes, width,
                     buffers.grads + s * segment_terms * width);
        Sum* const sums = buffers.sums + (panel - first_panel) * plan.block_patches * plan.panel_rows;
        for (int64_t patch = 0; patch < patches; patch += terms.tiles.rows) {
          const int64_t tile_rows = std::min<int64_t>(terms.tiles.rows, patches - patch);
          terms.multiply(width, tile_rows,
                         {buffers.runs, segments, patch * segment_terms, buffers.grads, width, width,
                          sums + patch * width, width, segment == first_segment ? Start::zero : Start::sum, nullptr});
        }
      }
    }
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      const int64_t row = panel * plan.panel_rows, lanes = std::min(plan.panel_rows, plan.rows - row);
      const int64_t width = terms.width(lanes);
      const Sum* const sums = buffers.sums + (panel - first_panel) * plan.block_patches * plan.panel_rows;
      for (int64_t m = 0; m < lanes; ++m)
        for (int64_t patch = 0; patch < patches; ++patch) buffers.result[m * patches + patch] = sums[patch * width + m];
      for (int64_t m = 0; m < lanes; ++m) {
        const int64_t offset = (group * plan.rows + row + m) * plan.patches + first_patch;
        if (plan.splits > 1)
          std::copy_n(buffers.result + m * patches, patches, partial + split * numel + offset);
        else
          terms.pack.store(buffers.result + m * patches, grad_weight + offset, 1, patches);
      }
    }
  });
  if (plan.splits > 1) add_partials(terms, partial, plan.splits, numel, grad_weight);
  return true;
}

}  // namespace

bool weight_sums_of_patches(const WeightSums<3>& problem) {
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
