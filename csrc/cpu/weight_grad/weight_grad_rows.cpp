// The weight gradient with rows of the output in the lanes (weight_grad_engines.h).
//
// A task (weight_grad_tasks.h) walks pieces of output rows: brings the rows of the image that they read into lines
// (image_lines.h), lays out their grad_output as [position, lane], and adds the product of the two to its sums, which
// lie as [panel of rows][tap and channel][lane]. Pieces of which a row of the kernel reads nothing but border are left
// out of the sums of that row, unless these are too few for tiles of their own.
#include "cpu/shared/image_lines.h"
#include "cpu/weight_grad/weight_grad_tasks.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kChunkPositions = 256;  // that are multiplied at a time, about
constexpr int64_t kBlockPatches = 256;    // channels and taps of a task, about
constexpr int64_t kLeastPatches = 96;     // fewer are not worth laying out grad_output for
constexpr int64_t kChannelUnit = 16;      // blocks of channels are a multiple of it, where there are so many
constexpr int64_t kBlockPanels = 8;       // of rows of a task
constexpr int64_t kOwnPatches = 36;       // of a row of the kernel, which then has runs of its own
constexpr int64_t kFewTasks = 10;         // so many or fewer are cut up further

// How a problem is cut up.
template <int Rank>
struct Plan {
  LinePlan<Rank> lines;
  int64_t chunk_pieces, chunk_sets;  // that are multiplied at a time
  int64_t taps;
  int64_t panel_rows;
  Blocks channels, panels;  // panels of rows
  Splits splits;            // of pieces
  int64_t run_lists;        // one for each row of the kernel, or one for all
  int64_t block;            // terms of a block, about
  bool in_place;            // grad_output is read where it lies

  int64_t blocks() const { return channels.count() * panels.count(); }
  int64_t list_rows() const { return lines.kernel_rows / run_lists; }
  int64_t list_patches() const { return list_rows() * lines.taps * channels.size; }
  int64_t panel_sums() const { return channels.size * taps * panel_rows; }
};

template <class Terms, int Rank>
Plan<Rank> plan_of(const Terms& terms, const WeightGrad<Rank>& problem) {
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;
  constexpr int64_t sum_size = sizeof(Sum), element_size = sizeof(Element);
  const int64_t limit = workspace_limit().cpu, rows = problem.rows(), channels = problem.channels();
  const Geometry<Rank>& geometry = problem.geometry;
  Plan<Rank> plan;
  plan.lines = LinePlan<Rank>(geometry, problem.batch(), kChunkPositions, Terms::kHalves);
  plan.taps = geometry.tap_numel();
  plan.panel_rows = std::min(terms.most_lanes(), terms.width(rows));
  plan.in_place = std::is_same_v<typename Terms::T, typename Terms::From> &&
                  problem.grad_output.layout.stride[2] == 1 && rows % terms.tiles.lanes == 0;

  // Channels and pieces whose lines and sums fit into a quarter of the limit each.
  const auto sets = [&] { return plan.lines.most_sets(plan.chunk_pieces, geometry); };
  const auto too_much = [&](int64_t count) {
    plan.lines.set_channels(count, Terms::kHalves);
    return sets() * plan.lines.numel * element_size > limit / 4 ||
           count * plan.taps * plan.panel_rows * sum_size > limit / 4;
  };
  plan.chunk_pieces = std::max<int64_t>(1, (kChunkPositions + plan.lines.piece / 2) / plan.lines.piece);
  int64_t most_channels = std::min(channels, round_up(std::max<int64_t>(1, kBlockPatches / plan.taps), kChannelUnit));
  while (most_channels > 1 && too_much(most_channels)) most_channels /= 2;
  while (plan.chunk_pieces > 1 && too_much(most_channels)) plan.chunk_pieces /= 2;

  plan.channels = {channels, most_channels};
  const int64_t panels = ceil_div(rows, plan.panel_rows);
  const int64_t most_panels = std::clamp<int64_t>(limit / 4 / (plan.panel_sums() * sum_size), 1, kBlockPanels);
  plan.panels = cut(panels, ceil_div(panels, most_panels));
  // More tasks by sums over fewer images first, then by fewer channels: halved, so that their number stays even.
  const auto tasks = [&] { return problem.groups() * plan.blocks(); };
  plan.splits = split_sums<Sum>(problem, tasks(), plan.lines.pieces, 2 * plan.chunk_pieces);
  while (tasks() * plan.splits.count <= kFewTasks) {
    const Blocks fewer = cut(channels, 2 * plan.channels.count(), kChannelUnit);
    if (fewer.size >= plan.channels.size || fewer.size * plan.taps < kLeastPatches) break;
    plan.channels = fewer;
  }
  plan.block = block_terms<typename Terms::T>(ceil_div(plan.lines.pieces * plan.lines.piece, plan.splits.count));
  plan.lines.set_channels(plan.channels.size, Terms::kHalves);
  plan.chunk_sets = sets();
  plan.run_lists = plan.lines.taps * plan.channels.size < kOwnPatches ? 1 : plan.lines.kernel_rows;
  return plan;
}

template <class Terms, int Rank>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  typename Terms::Element *lines, *zeros;
  T* grads;
  Sum *sums, *result;
  LineTap* line_taps;
  LineCache::Slot* slots;
  PositionPiece<Rank>* pieces;
  int64_t* sets;       // [pieces, kernel rows]: the slot of a set, or -1 beyond the image
  Run<T>* runs;        // [lists, runs]
  int64_t* run_count;  // [lists]
  const T** run_rows;  // [lists, runs, patches of a list]
};

// Lists the runs of some pieces and their rows, one for each tap and channel of a list.
template <class Terms, int Rank>
void list_runs(const WeightGrad<Rank>& problem, const Plan<Rank>& plan, int64_t channels, int64_t most_runs,
               int64_t count, const Buffers<Terms, Rank>& buffers) {
  using T = typename Terms::T;
  const LinePlan<Rank>& lines = plan.lines;
  const PlaneLayout<Rank>& output = problem.grad_output.layout;
  const int64_t list_rows = plan.list_rows(), list_patches = plan.list_patches();
  for (int64_t list = 0; list < plan.run_lists; ++list) {
    Run<T>* const list_runs = buffers.runs + list * most_runs;
    const T** rows = buffers.run_rows + list * most_runs * list_patches;
    int64_t runs = 0, term = 0, block = 0;
    for (int64_t p = 0; p < count; ++p) {
      const int64_t* const sets = buffers.sets + p * lines.kernel_rows + list * list_rows;
      const bool border = std::all_of(sets, sets + list_rows, [](int64_t set) { return set < 0; });
      const auto add = [&](int64_t length, bool tail) {
        const int64_t b = plan.in_place ? offset_of<Rank>(buffers.pieces[p], output) : term;
        term += length;
        if (border) return;
        const T** row = rows;
        for (int64_t i = 0; i < list_rows; ++i)
          for (int64_t j = 0; j < lines.taps; ++j) {
            const LineTap& at = buffers.line_taps[j];
            const int64_t offset =
                tail ? lines.tail + j * lines.channels * 2 : at.line * lines.channels * lines.pitch + at.start;
            const auto* const from = sets[i] < 0 ? buffers.zeros : buffers.lines + sets[i] * lines.numel + offset;
            const int64_t step = sets[i] < 0 ? 0 : tail ? 2 : lines.pitch;
            for (int64_t c = 0; c < channels; ++c) *row++ = reinterpret_cast<const T*>(from + c * step);
          }
        // Blocks of whole runs, as far as they are short.
        if (runs > 0 && block + length > plan.block) {
          list_runs[runs - 1].ends_block = true;
          block = 0;
        }
        block += length;
        list_runs[runs++] = {rows, b, length, false};
        rows += list_patches;
      };
      const int64_t whole = buffers.pieces[p].length / Terms::kHalves;
      if (whole > 0) add(whole, false);
      if (buffers.pieces[p].length % Terms::kHalves != 0) add(1, true);
    }
    if (runs > 0) list_runs[runs - 1].ends_block = true;
    buffers.run_count[list] = runs;
  }
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
bool run(const Terms& terms, const WeightGrad<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;
  const Plan<Rank> plan = plan_of(terms, problem);
  const LinePlan<Rank>& lines = plan.lines;
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>&image = problem.image.layout, &output = problem.grad_output.layout;
  const int64_t taps = plan.taps, panel_sums = plan.panel_sums();
  const int64_t most_runs = plan.chunk_pieces * (lines.piece == geometry.positions[Rank - 1] ? 1 : Terms::kHalves);
  const auto carve = [&](Carver& carver) {
    return Buffers<Terms, Rank>{carver.take<Element>(plan.chunk_sets * lines.numel),
                                carver.take<Element>(lines.piece),
                                carver.take<T>(plan.in_place ? 0 : plan.chunk_pieces * lines.piece * plan.panel_rows),
                                carver.take<Sum>(plan.panels.size * panel_sums),
                                carver.take<Sum>(terms.tiles.lanes * plan.channels.size * taps),
                                carver.take<LineTap>(lines.taps),
                                carver.take<LineCache::Slot>(plan.chunk_sets),
                                carver.take<PositionPiece<Rank>>(plan.chunk_pieces),
                                carver.take<int64_t>(plan.chunk_pieces * lines.kernel_rows),
                                carver.take<Run<T>>(plan.run_lists * most_runs),
                                carver.take<int64_t>(plan.run_lists),
                                carver.take<const T*>(plan.run_lists * most_runs * plan.list_patches())};
  };

  const auto body = [&](auto task, const auto& buffers) {
    const Range channel_block = task.next(plan.channels), panels = task.next(plan.panels);
    const int64_t channels = channel_block.size(), list_patches = plan.list_rows() * lines.taps * channels;
    const From* const plane = reinterpret_cast<const From*>(problem.image.data) + task.group * image.stride[1] +
                              channel_block.begin * image.stride[2];
    const From* const grads = reinterpret_cast<const From*>(problem.grad_output.data) + task.group * output.stride[1];
    for (int64_t i = 0; i < lines.taps; ++i) buffers.line_taps[i] = lines.tap(i, geometry);
    std::fill_n(buffers.zeros, lines.piece, Element{});
    LineCache cache(buffers.slots, plan.chunk_sets);

    for (int64_t piece = task.units.begin; piece < task.units.end; piece += plan.chunk_pieces) {
      const int64_t pieces = std::min(plan.chunk_pieces, task.units.end - piece);
      for (int64_t p = 0; p < pieces; ++p) buffers.pieces[p] = lines.at(piece + p, geometry);
      fetch_lines(terms, lines, geometry, image, plane, channels, task.taps, buffers.pieces, pieces, cache,
                  buffers.lines, buffers.sets);
      list_runs<Terms, Rank>(problem, plan, channels, most_runs, pieces, buffers);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const int64_t row = panel * plan.panel_rows, lanes = std::min(plan.panel_rows, problem.rows() - row);
        const int64_t width = terms.width(lanes);
        const From* const from = grads + row * output.stride[2];
        if (!plan.in_place) lay_out_grads(terms, output, from, buffers.pieces, pieces, lanes, width, buffers.grads);
        TileArguments<T> arguments{nullptr,
                                   0,
                                   0,
                                   plan.in_place ? reinterpret_cast<const T*>(from) : buffers.grads,
                                   plan.in_place ? 1 : width,
                                   plan.in_place ? output.axis_stride[Rank - 1] : width,
                                   buffers.sums + (panel - panels.begin) * panel_sums,
                                   width,
                                   piece == task.units.begin ? Start::zero : Start::sum,
                                   nullptr};
        for (int64_t list = 0; list < plan.run_lists; ++list) {
          arguments.runs = buffers.runs + list * most_runs;
          arguments.run_count = buffers.run_count[list];
          for (int64_t patch = 0, rows; patch < list_patches; patch += rows) {
            rows = terms.tile_rows(width, list_patches - patch);
            arguments.first_row = patch;
            terms.multiply(width, rows, arguments);
            arguments.c += rows * width;
          }
        }
      }
    }
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const int64_t row = panel * plan.panel_rows, lanes = std::min(plan.panel_rows, problem.rows() - row);
      task.write_lanes(buffers.sums + (panel - panels.begin) * panel_sums, lanes, taps, channels, buffers.result,
                       (row * problem.channels() + channel_block.begin) * taps, problem.channels() * taps);
    }
  };
  return run_weight_tasks(terms, problem, plan.splits, plan.blocks(), plan.panel_rows,
                          "rows of the image are brought into lines, which all taps read", carve, body);
}

}  // namespace

bool weight_sums_of_rows(const WeightGrad<3>& problem) {
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
