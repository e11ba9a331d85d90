// The weight gradient with rows of the output in the lanes, of patches that are gathered (weight_grad_engines.h).
//
// A task (weight_grad_tasks.h) walks stretches of positions: gathers their patches for its channels and taps,
// transposes their grad_output for its rows, and adds the product of the two to its sums, which lie as [panel of
// rows][channel and tap][lane].
#include "cpu/weight_grad/weight_grad_tasks.h"

namespace unfoldconv::cpu::weight_grad {
namespace {

constexpr int64_t kChunkSegments = 4;    // of positions that are multiplied at a time, at most
constexpr int64_t kChunkPatches = 1024;  // channels and taps of a task times those segments, at most
constexpr int64_t kLeastPatches = 96;    // fewer are not worth transposing grad_output for
constexpr int64_t kBlockPanels = 8;      // of rows of a task

// How a problem is cut up.
struct Tiling {
  int64_t segment;  // positions, counted over all images, that are gathered at a time
  int64_t chunk_segments;
  int64_t panel_rows;
  Blocks patches, panels;  // panels of rows
  Splits splits;           // of segments
  int64_t tap_pieces;

  int64_t blocks() const { return patches.count() * panels.count(); }
};

template <class Terms>
Tiling tiling_of(const Terms& terms, const WeightGrad<3>& problem) {
  using Sum = typename Terms::Sum;
  const int64_t limit = workspace_limit().cpu, positions = problem.batch() * problem.geometry.position_numel();
  const int64_t tile_rows = terms.tiles.rows, patches = problem.channels() * problem.geometry.tap_numel();
  Tiling tiling;
  tiling.segment = std::min(int64_t{terms.tiles.lanes} * kTileVectors, terms.width(positions));
  tiling.tap_pieces = most_pieces<3>(tiling.segment, problem.geometry.positions) + kTileVectors;
  tiling.panel_rows = std::min(terms.most_lanes(), terms.width(problem.rows()));
  const int64_t panels = ceil_div(problem.rows(), tiling.panel_rows);

  // What is gathered is multiplied by one panel after the other. For a single panel a task takes more patches, because
  // each of its kind transposes grad_output again.
  tiling.chunk_segments = panels == 1 ? kChunkSegments / 2 : kChunkSegments;
  const int64_t chunk_bytes = tiling.segment * tiling.chunk_segments * static_cast<int64_t>(sizeof(typename Terms::T));
  const int64_t most_patches =
      std::max<int64_t>(1, std::min(kChunkPatches / tiling.chunk_segments, limit / 8 / chunk_bytes) / tile_rows) *
      tile_rows;
  const int64_t panel_bytes = most_patches * tiling.panel_rows * static_cast<int64_t>(sizeof(Sum));
  tiling.panels = cut(panels, ceil_div(panels, std::clamp<int64_t>(limit / 4 / panel_bytes, 1, kBlockPanels)));
  // More tasks by sums over fewer images first, then by smaller blocks.
  const int64_t others = problem.groups() * tiling.panels.count(), least = ceil_div(patches, most_patches);
  tiling.splits =
      split_sums<Sum>(problem, others * least, ceil_div(positions, tiling.segment), 2 * tiling.chunk_segments);
  const int64_t wanted =
      std::min(ceil_div(kTasksPerProblem, others * tiling.splits.count), std::max<int64_t>(1, patches / kLeastPatches));
  tiling.patches = cut(patches, std::max(least, wanted), tile_rows);
  return tiling;
}

template <class Terms>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  T *patches, *grads;
  Sum *sums, *result;
  PositionPiece<3>* positions;
  TapPieces* taps;
  Piece* pieces;
  Run<T>* runs;
};

// grad_output of one segment and panel of rows as [terms, lanes].
template <class Terms>
void pack_grads(const Terms& terms, const WeightGrad<3>& problem, const PositionPiece<3>* pieces, int count, bool line,
                int64_t group, int64_t row, int64_t lanes, int64_t width, typename Terms::T* to) {
  using From = typename Terms::From;
  const PlaneLayout<3>& layout = problem.grad_output.layout;
  const int64_t step = position_step<3>(layout, problem.geometry.positions);
  const From* const base =
      reinterpret_cast<const From*>(problem.grad_output.data) + group * layout.stride[1] + row * layout.stride[2];
  const int64_t length = pieces[count - 1].lane + pieces[count - 1].length;
  for (int piece = 0, next; piece < count; piece = next) {
    int64_t positions = pieces[piece].length;
    // The positions of an image may lie in a line.
    for (next = piece + 1; line && next < count && pieces[next].image == pieces[piece].image; ++next)
      positions += pieces[next].length;
    const From* const from = base + offset_of<3>(pieces[piece], layout);
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

template <class Terms>
class PatchesJob final : public BlocksJob<PatchesJob<Terms>, Terms> {
  using Base = BlocksJob<PatchesJob<Terms>, Terms>;
  using Base::problem_;
  using Base::terms_;
  using typename Base::From;
  using typename Base::Sum;
  using typename Base::T;

 public:
  PatchesJob(const Terms& terms, const WeightGrad<3>& problem)
      : Base(terms, problem),
        tiling_(tiling_of(terms, problem)),
        segment_terms_(tiling_.segment / Terms::kHalves),
        segment_patches_(tiling_.patches.size * segment_terms_),
        panel_sums_(tiling_.patches.size * tiling_.panel_rows),
        line_(is_line<3>(problem.grad_output.layout, problem.geometry.positions)) {
    this->plan_tasks(tiling_.splits, tiling_.blocks(), tiling_.panel_rows,
                     "patches are gathered, because rows of the output are short");
  }

  Buffers<Terms> buffers(Carver& carver) const {
    const int64_t taps = problem_.geometry.tap_numel();
    return {carver.take<T>(tiling_.chunk_segments * segment_patches_),
            carver.take<T>(tiling_.chunk_segments * segment_terms_ * tiling_.panel_rows),
            carver.take<Sum>(tiling_.panels.size * panel_sums_),
            carver.take<Sum>(terms_.tiles.lanes * tiling_.patches.size),
            carver.take<PositionPiece<3>>(tiling_.chunk_segments * tiling_.tap_pieces),
            carver.take<TapPieces>(taps),
            carver.take<Piece>(taps * tiling_.tap_pieces),
            carver.take<Run<T>>(tiling_.chunk_segments)};
  }

  void run_block(Task<Terms> task, const Buffers<Terms>& own) const {
    const Range patches = task.next(tiling_.patches), panels = task.next(tiling_.panels);
    for (int64_t segment = task.units.begin; segment < task.units.end; segment += tiling_.chunk_segments) {
      Chunk chunk;
      chunk.segments = std::min(tiling_.chunk_segments, task.units.end - segment);
      for (int64_t s = 0; s < chunk.segments; ++s) gather(task, patches, segment, s, chunk, own);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel)
        multiply(task, patches.size(), panel, chunk, segment == task.units.begin ? Start::zero : Start::sum,
                 own.sums + (panel - panels.begin) * panel_sums_, own);
    }
    // Patches are channels and taps in the order of the weight.
    for (int64_t panel = panels.begin; panel < panels.end; ++panel)
      task.write_lanes(own.sums + (panel - panels.begin) * panel_sums_, lanes_of(panel), 1, patches.size(), own.result,
                       panel * tiling_.panel_rows * tiling_.patches.total + patches.begin, tiling_.patches.total);
  }

 private:
  // Segments that are multiplied at a time.
  struct Chunk {
    int64_t segments;
    int pieces[kChunkSegments];  // of each
    const T* run_rows[kChunkSegments][kMostTileRows<T>];
  };

  int64_t lanes_of(int64_t panel) const {
    return std::min(tiling_.panel_rows, problem_.rows() - panel * tiling_.panel_rows);
  }

  // The patches of segment s of a chunk as [channel and tap, position].
  void gather(const Task<Terms>& task, Range patches, int64_t segment, int64_t s, Chunk& chunk,
              const Buffers<Terms>& own) const {
    const Geometry<3>& geometry = problem_.geometry;
    const PlaneLayout<3>& image = problem_.image.layout;
    const int64_t taps = geometry.tap_numel(), positions = problem_.batch() * geometry.position_numel();
    const int64_t first = (segment + s) * tiling_.segment, length = std::min(tiling_.segment, positions - first);
    PositionPiece<3>* const at = own.positions + s * tiling_.tap_pieces;
    chunk.pieces[s] = split_positions<3>(first, length, geometry.positions, at);
    Piece* next = own.pieces;
    for (int64_t tap = 0; tap < taps; ++tap)
      next = pieces_of_tap<3>(task.taps[tap], geometry, image, at, chunk.pieces[s], terms_.tiles.lanes, own.taps[tap],
                              next);
    T* const rows = own.patches + s * segment_patches_;
    terms_.pack.rows({reinterpret_cast<const From*>(problem_.image.data) + task.group * image.stride[1],
                      image.stride[2], geometry.stride[2] * image.axis_stride[2], problem_.channels(), taps,
                      patches.begin, patches.size(), own.taps, static_cast<int>(tiling_.segment / terms_.tiles.lanes)},
                     rows);
    for (int64_t i = 0; i < terms_.tiles.rows; ++i) chunk.run_rows[s][i] = rows + i * segment_terms_;
    own.runs[s] = {chunk.run_rows[s], s * segment_terms_, Terms::count(length),
                   (s + 1) * segment_terms_ % kBlockTerms<T> == 0};
  }

  // Adds to the sums of one panel what a chunk contributes.
  void multiply(const Task<Terms>& task, int64_t patches, int64_t panel, const Chunk& chunk, Start start, Sum* sums,
                const Buffers<Terms>& own) const {
    const int64_t lanes = lanes_of(panel), width = terms_.width(lanes);
    for (int64_t s = 0; s < chunk.segments; ++s)
      pack_grads(terms_, problem_, own.positions + s * tiling_.tap_pieces, chunk.pieces[s], line_, task.group,
                 panel * tiling_.panel_rows, lanes, width, own.grads + s * segment_terms_ * width);
    for (int64_t patch = 0; patch < patches; patch += terms_.tiles.rows) {
      const int64_t tile_rows = std::min<int64_t>(terms_.tiles.rows, patches - patch);
      terms_.multiply(width, tile_rows,
                      {own.runs, chunk.segments, patch * segment_terms_, own.grads, width, width, sums + patch * width,
                       width, start, nullptr});
    }
  }

  const Tiling tiling_;
  const int64_t segment_terms_, segment_patches_;  // of what one segment gathers: terms of a row, and of all
  const int64_t panel_sums_;
  const bool line_;  // positions of grad_output lie at one distance
};

}  // namespace

const char* decline_patches(const OneImage<WeightGrad<3>>& problem) {
  return has_terms(problem->image.dtype) ? nullptr : kNoTerms;
}

const char* plan_patches(const WeightGrad<3>& problem, const Call&, JobSlot& slot) {
  with_terms(problem.image.dtype,
             [&](const auto& terms) { slot.emplace<PatchesJob<std::decay_t<decltype(terms)>>>(terms, problem); });
  return nullptr;
}

}  // namespace unfoldconv::cpu::weight_grad
