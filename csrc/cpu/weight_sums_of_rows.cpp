// The weight gradient with rows of the output in the lanes (weight_sums.h).
//
// A task owns a block of grad_weight, or its sum over some of the images. It walks pieces of output rows: brings the
// rows of the image that they read into lines (image_lines.h), lays out their grad_output as [position, lane], and adds
// the product of the two to its sums, which lie as [panel of rows][tap and channel][lane]. Where several tasks sum one
// block, their sums are added in order at the end.
#include "../workspace.h"
#include "correlation_types.h"
#include "image_lines.h"
#include "weight_partials.h"
#include "weight_sums.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kChunkPositions = 256;  // that are multiplied at a time, about
constexpr int64_t kBlockPatches = 256;    // channels and taps of a task, about
constexpr int64_t kLeastPatches = 96;     // fewer are not worth laying out grad_output for
constexpr int64_t kChannelUnit = 16;      // blocks of channels are a multiple of it, where there are so many
constexpr int64_t kBlockPanels = 8;       // of rows of a task

// How a problem is cut up.
template <int Rank>
struct Plan {
  LinePlan<Rank> lines;
  int64_t chunk_pieces, chunk_sets;  // that are multiplied at a time
  int64_t taps;
  int64_t channels, block_channels, channel_blocks;
  int64_t block_patches;
  int64_t rows, panel_rows, panels, block_panels, panel_blocks;
  int64_t split, splits;  // pieces that a task sums
  int64_t block_sums;     // numbers in the sums of a task
  bool in_place;          // grad_output is read where it lies
};

template <class Terms, int Rank>
Plan<Rank> plan_of(const Terms& terms, const WeightSums<Rank>& problem) {
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;
  constexpr int64_t sum_size = sizeof(Sum), element_size = sizeof(Element);
  const int64_t limit = workspace_limit().cpu;
  const Geometry<Rank>& geometry = problem.geometry;
  Plan<Rank> plan;
  plan.lines = LinePlan<Rank>(geometry, problem.batch(), kChunkPositions, Terms::kHalves);
  plan.taps = geometry.tap_numel();
  plan.channels = problem.channels();
  plan.rows = problem.rows();
  plan.panel_rows = std::min(terms.most_lanes(), terms.width(plan.rows));
  plan.panels = ceil_div(plan.rows, plan.panel_rows);
  plan.in_place = std::is_same_v<typename Terms::T, typename Terms::From> &&
                  problem.grad_output.layout.stride[2] == 1 && plan.rows % terms.tiles.lanes == 0;

  // Channels and pieces whose lines and sums fit into a quarter of the limit each.
  const auto blocked = [&](int64_t patches) {
    return std::min(plan.channels, round_up(std::max<int64_t>(1, patches / plan.taps), kChannelUnit));
  };
  const auto sets = [&] { return plan.lines.most_sets(plan.chunk_pieces, geometry); };
  const auto too_much = [&](int64_t channels) {
    plan.lines.set_channels(channels, Terms::kHalves);
    return sets() * plan.lines.numel * element_size > limit / 4 ||
           channels * plan.taps * plan.panel_rows * sum_size > limit / 4;
  };
  plan.chunk_pieces = std::max<int64_t>(1, (kChunkPositions + plan.lines.piece / 2) / plan.lines.piece);
  plan.block_channels = blocked(kBlockPatches);
  while (plan.block_channels > 1 && too_much(plan.block_channels)) plan.block_channels /= 2;
  while (plan.chunk_pieces > 1 && too_much(plan.block_channels)) plan.chunk_pieces /= 2;

  const auto most_panels = [&] {
    const int64_t panel_bytes = plan.block_channels * plan.taps * plan.panel_rows * sum_size;
    return std::clamp<int64_t>(limit / 4 / panel_bytes, 1, kBlockPanels);
  };
  plan.panel_blocks = ceil_div(plan.panels, most_panels());
  plan.block_panels = ceil_div(plan.panels, plan.panel_blocks);
  // More tasks by sums over fewer images first, then by smaller blocks.
  const int64_t blocks = problem.groups() * plan.panel_blocks;
  plan.channel_blocks = ceil_div(plan.channels, plan.block_channels);
  const int64_t weight_bytes = problem.groups() * plan.rows * plan.channels * plan.taps * sum_size;
  const int64_t most_splits = std::clamp<int64_t>(limit / 2 / std::max<int64_t>(1, weight_bytes), 1,
                                                  ceil_div(plan.lines.pieces, 2 * plan.chunk_pieces));
  plan.splits = std::min(most_splits, ceil_div(kTasksPerProblem, blocks * plan.channel_blocks));
  const int64_t wanted = ceil_div(kTasksPerProblem, blocks * plan.splits);
  plan.block_channels =
      std::min(plan.block_channels, blocked(std::max(kLeastPatches, ceil_div(plan.channels, wanted) * plan.taps)));
  plan.channel_blocks = ceil_div(plan.channels, plan.block_channels);
  plan.lines.set_channels(plan.block_channels, Terms::kHalves);
  plan.chunk_sets = sets();
  plan.block_patches = plan.block_channels * plan.taps;
  plan.block_sums = plan.block_panels * plan.block_patches * plan.panel_rows;
  plan.split = ceil_div(plan.lines.pieces, plan.splits);
  plan.splits = ceil_div(plan.lines.pieces, plan.split);
  return plan;
}

template <class Terms, int Rank>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  typename Terms::Element *lines, *zeros;
  T* grads;
  Sum *sums, *result;
  LineCache::Slot* slots;
  PositionPiece<Rank>* pieces;
  int64_t* sets;  // [pieces, kernel rows]: the slot of a set, or -1 beyond the image
  Run<T>* runs;
  const T** run_rows;  // [runs, patches]
};

// Lists the runs of some pieces and their rows, one for each tap and channel; returns how many runs.
template <class Terms, int Rank>
int64_t list_runs(const WeightSums<Rank>& problem, const Plan<Rank>& plan, const LineTap* line_taps, int64_t channels,
                  int64_t count, const Buffers<Terms, Rank>& buffers) {
  using T = typename Terms::T;
  const LinePlan<Rank>& lines = plan.lines;
  const PlaneLayout<Rank>& output = problem.grad_output.layout;
  int64_t runs = 0, term = 0, block = 0;
  const auto add = [&](int64_t p, int64_t length, bool tail) {
    const T** rows = buffers.run_rows + runs * plan.block_patches;
    for (int64_t i = 0; i < lines.kernel_rows; ++i) {
      const int64_t set = buffers.sets[p * lines.kernel_rows + i];
      for (int64_t j = 0; j < lines.taps; ++j) {
        const LineTap& at = line_taps[j];
        const int64_t offset =
            tail ? lines.tail + j * lines.channels * 2 : at.line * lines.channels * lines.pitch + at.start;
        const auto* const from = set < 0 ? buffers.zeros : buffers.lines + set * lines.numel + offset;
        const int64_t step = set < 0 ? 0 : tail ? 2 : lines.pitch;
        for (int64_t c = 0; c < channels; ++c) rows[c] = reinterpret_cast<const T*>(from + c * step);
        rows += channels;
      }
    }
    // Blocks of whole runs, as far as they are short.
    if (runs > 0 && block + length > kBlockTerms<T>) {
      buffers.runs[runs - 1].ends_block = true;
      block = 0;
    }
    block += length;
    const int64_t b = plan.in_place ? offset_of<Rank>(buffers.pieces[p], output) : term;
    buffers.runs[runs] = {buffers.run_rows + runs * plan.block_patches, b, length, false};
    ++runs;
    term += length;
  };
  for (int64_t p = 0; p < count; ++p) {
    const int64_t whole = buffers.pieces[p].length / Terms::kHalves;
    if (whole > 0) add(p, whole, false);
    if (buffers.pieces[p].length % Terms::kHalves != 0) add(p, 1, true);
  }
  buffers.runs[runs - 1].ends_block = true;
  return runs;
}

// grad_output at some pieces, for one panel of rows, as [terms, lanes]. A piece begins with a term of its own.
template <class Terms, int Rank>
void lay_out_grads(const Terms& terms, const PlaneLayout<Rank>& layout, const typename Terms::From* from,
                   const PositionPiece<Rank>* pieces, int64_t count, int64_t lanes, int64_t width,
                   typename Terms::T* to) {
  const int64_t step = layout.axis_stride[Rank - 1];
  for (int64_t p = 0; p < count;) {
    const int64_t offset = offset_of<Rank>(pieces[p], layout);
    int64_t positions = pieces[p].length;
    // Pieces that adjoin in memory are as one.
    for (++p; p < count && positions % Terms::kHalves == 0 &&
              offset_of<Rank>(pieces[p], layout) == offset + positions * step;
         ++p)
      positions += pieces[p].length;
    terms.pack.transpose({from + offset, layout.stride[2], step, lanes, positions, width}, to, width);
    to += Terms::count(positions) * width;
  }
}

template <class Terms, int Rank>
bool run(const Terms& terms, const WeightSums<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;
  const Plan<Rank> plan = plan_of(terms, problem);
  const LinePlan<Rank>& lines = plan.lines;
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>&image = problem.image.layout, &output = problem.grad_output.layout;
  const int64_t groups = problem.groups(), taps = plan.taps;
  const int64_t most_runs = plan.chunk_pieces * (lines.piece == geometry.positions[Rank - 1] ? 1 : Terms::kHalves);
  const auto carve = [&](Carver& carver) {
    return Buffers<Terms, Rank>{carver.take<Element>(plan.chunk_sets * lines.numel),
                                carver.take<Element>(lines.piece),
                                carver.take<T>(plan.in_place ? 0 : plan.chunk_pieces * lines.piece * plan.panel_rows),
                                carver.take<Sum>(plan.block_sums),
                                carver.take<Sum>(plan.block_patches),
                                carver.take<LineCache::Slot>(plan.chunk_sets),
                                carver.take<PositionPiece<Rank>>(plan.chunk_pieces),
                                carver.take<int64_t>(plan.chunk_pieces * lines.kernel_rows),
                                carver.take<Run<T>>(most_runs),
                                carver.take<const T*>(most_runs * plan.block_patches)};
  };
  Carver count;
  carve(count);
  if (count.bytes() > workspace_limit().cpu) return false;

  const int64_t patches = plan.channels * taps, numel = groups * plan.rows * patches;
  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<Tap<Rank>>(taps), carver.take<LineTap>(lines.taps),
                           carver.take<Sum>(plan.splits > 1 ? plan.splits * numel : 0));
  };
  const int64_t tasks = plan.splits * groups * plan.panel_blocks * plan.channel_blocks;
  Carver shared_count;
  carve_shared(shared_count);
  if (Report* const report = Report::wanted()) {
    report->engine(Engine::positions, terms.tile_name(plan.panel_rows), tasks, count.bytes(), shared_count.bytes(),
                   "rows of the image are brought into lines, which all taps read");
    return true;
  }
  const Tensor shared = allocate_bytes(shared_count.bytes(), problem.grad_weight);
  Carver shared_carver(shared);
  const auto [tap_list, line_taps, partial] = carve_shared(shared_carver);
  list_taps<Rank>(geometry, image.axis_stride, tap_list);
  for (int64_t i = 0; i < lines.taps; ++i) line_taps[i] = lines.tap(i, geometry);
  From* const grad_weight = static_cast<From*>(problem.grad_weight.data_ptr());

  const bool serial = 2. * numel * problem.batch() * geometry.position_numel() < kSerialFlops;
  run_tasks(tasks, serial, problem.grad_weight, carve, [&](int64_t task, const auto& buffers) {
    const TileScope<T> scope(terms.tiles);
    const int64_t first_channel = task % plan.channel_blocks * plan.block_channels;
    const int64_t channels = std::min(plan.block_channels, plan.channels - first_channel);
    const int64_t first_panel = task / plan.channel_blocks % plan.panel_blocks * plan.block_panels;
    const int64_t end_panel = std::min(plan.panels, first_panel + plan.block_panels);
    const int64_t group = task / plan.channel_blocks / plan.panel_blocks % groups;
    const int64_t split = task / plan.channel_blocks / plan.panel_blocks / groups;
    const int64_t first_piece = split * plan.split, end_piece = std::min(lines.pieces, first_piece + plan.split);
    const From* const plane =
        reinterpret_cast<const From*>(problem.image.data) + group * image.stride[1] + first_channel * image.stride[2];
    const From* const grads = reinterpret_cast<const From*>(problem.grad_output.data) + group * output.stride[1];
    const auto sums_of = [&](int64_t panel) {
      return buffers.sums + (panel - first_panel) * plan.block_patches * plan.panel_rows;
    };
    std::fill_n(buffers.zeros, lines.piece, Element{});
    LineCache cache(buffers.slots, plan.chunk_sets);

    for (int64_t piece = first_piece; piece < end_piece; piece += plan.chunk_pieces) {
      const int64_t pieces = std::min(plan.chunk_pieces, end_piece - piece);
      for (int64_t p = 0; p < pieces; ++p) buffers.pieces[p] = lines.at(piece + p, geometry);
      fetch_lines(terms, lines, geometry, image, plane, channels, tap_list, buffers.pieces, pieces, cache,
                  buffers.lines, buffers.sets);
      const int64_t runs = list_runs<Terms, Rank>(problem, plan, line_taps, channels, pieces, buffers);
      for (int64_t panel = first_panel; panel < end_panel; ++panel) {
        const int64_t row = panel * plan.panel_rows, lanes = std::min(plan.panel_rows, plan.rows - row);
        const int64_t width = terms.width(lanes);
        const From* const from = grads + row * output.stride[2];
        if (!plan.in_place) lay_out_grads(terms, output, from, buffers.pieces, pieces, lanes, width, buffers.grads);
        for (int64_t patch = 0; patch < channels * taps; patch += terms.tiles.rows) {
          const int64_t rows = std::min<int64_t>(terms.tiles.rows, channels * taps - patch);
          terms.multiply(
              width, rows,
              {buffers.runs, runs, 0, plan.in_place ? reinterpret_cast<const T*>(from) : buffers.grads,
               plan.in_place ? 1 : width, plan.in_place ? output.axis_stride[Rank - 1] : width,
               sums_of(panel) + patch * width, width, piece == first_piece ? Start::zero : Start::sum, nullptr, patch});
        }
      }
    }
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      const int64_t row = panel * plan.panel_rows, lanes = std::min(plan.panel_rows, plan.rows - row);
      const int64_t width = terms.width(lanes), length = channels * taps;
      for (int64_t m = 0; m < lanes; ++m) {
        const Sum* from = sums_of(panel) + m;
        for (int64_t tap = 0; tap < taps; ++tap)
          for (int64_t c = 0; c < channels; ++c, from += width) buffers.result[c * taps + tap] = *from;
        const int64_t offset = (group * plan.rows + row + m) * patches + first_channel * taps;
        if (plan.splits > 1)
          std::copy_n(buffers.result, length, partial + split * numel + offset);
        else
          terms.pack.store(buffers.result, grad_weight + offset, 1, length);
      }
    }
  });
  if (plan.splits > 1) add_partials(terms, partial, plan.splits, numel, grad_weight);
  return true;
}

}  // namespace

bool weight_sums_of_rows(const WeightSums<3>& problem) {
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
