// The weight gradient with rows of the output in the lanes (weight_grad_engines.h).
//
// A task (weight_grad_tasks.h) walks pieces of output rows: brings the rows of the image that they read into lines
// (image_lines.h), lays out their grad_output as [position, lane], and adds the product of the two to its sums, which
// lie as [panel of rows][tap and channel][lane]. Pieces of which a row of the kernel reads nothing but border are left
// out of the sums of that row, unless these are too few for tiles of their own.
#include "cpu/shared/image_lines.h"
#include "cpu/weight_grad/weight_grad_tasks.h"

namespace unfoldconv::cpu::weight_grad {
namespace {

constexpr int64_t kChunkPositions = 256;   // that are multiplied at a time, about
constexpr int64_t kMostLinePatches = 256;  // channels and taps of a task, about
constexpr int64_t kLeastLinePatches = 96;  // fewer are not worth laying out grad_output for
constexpr int64_t kChannelUnit = 16;       // blocks of channels are a multiple of it, where there are so many
constexpr int64_t kBlockPanels = 8;        // of rows of a task
constexpr int64_t kOwnPatches = 36;        // of a row of the kernel, which then has runs of its own
constexpr int64_t kFewTasks = 10;          // so many or fewer are cut up further
constexpr int64_t kShortRow = 8;           // positions; runs of a line that are shorter cost more than gathered patches
constexpr int64_t kWholeRows = 16;         // of which vectors of every instruction set are full

// How a problem is cut up.
struct Tiling {
  LinePlan<3> lines;
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

template <class Terms>
Tiling tiling_of(const Terms& terms, const WeightGrad<3>& problem) {
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;
  constexpr int64_t sum_size = sizeof(Sum), element_size = sizeof(Element);
  const int64_t limit = workspace_limit().cpu, rows = problem.rows(), channels = problem.channels();
  const Geometry<3>& geometry = problem.geometry;
  Tiling tiling;
  tiling.lines = LinePlan<3>(geometry, problem.batch(), kChunkPositions, Terms::kHalves);
  tiling.taps = geometry.tap_numel();
  tiling.panel_rows = std::min(terms.most_lanes(), terms.width(rows));
  tiling.in_place = std::is_same_v<typename Terms::T, typename Terms::From> &&
                    problem.grad_output.layout.stride[2] == 1 && rows % terms.tiles.lanes == 0;

  // Channels and pieces whose lines and sums fit into a quarter of the limit each.
  const auto sets = [&] { return tiling.lines.most_sets(tiling.chunk_pieces, geometry); };
  const auto too_much = [&](int64_t count) {
    tiling.lines.set_channels(count, Terms::kHalves);
    return sets() * tiling.lines.numel * element_size > limit / 4 ||
           count * tiling.taps * tiling.panel_rows * sum_size > limit / 4;
  };
  tiling.chunk_pieces = std::max<int64_t>(1, (kChunkPositions + tiling.lines.piece / 2) / tiling.lines.piece);
  int64_t most_channels =
      std::min(channels, round_up(std::max<int64_t>(1, kMostLinePatches / tiling.taps), kChannelUnit));
  while (most_channels > 1 && too_much(most_channels)) most_channels /= 2;
  while (tiling.chunk_pieces > 1 && too_much(most_channels)) tiling.chunk_pieces /= 2;

  tiling.channels = {channels, most_channels};
  const int64_t panels = ceil_div(rows, tiling.panel_rows);
  const int64_t most_panels = std::clamp<int64_t>(limit / 4 / (tiling.panel_sums() * sum_size), 1, kBlockPanels);
  tiling.panels = cut(panels, ceil_div(panels, most_panels));
  // More tasks by sums over fewer images first, then by fewer channels: halved, so that their number stays even.
  const auto tasks = [&] { return problem.groups() * tiling.blocks(); };
  tiling.splits = split_sums<Sum>(problem, tasks(), tiling.lines.pieces, 2 * tiling.chunk_pieces);
  while (tasks() * tiling.splits.count <= kFewTasks) {
    const Blocks fewer = cut(channels, 2 * tiling.channels.count(), kChannelUnit);
    if (fewer.size >= tiling.channels.size || fewer.size * tiling.taps < kLeastLinePatches) break;
    tiling.channels = fewer;
  }
  tiling.block =
      block_terms<typename Terms::T>(ceil_div(tiling.lines.pieces * tiling.lines.piece, tiling.splits.count));
  tiling.lines.set_channels(tiling.channels.size, Terms::kHalves);
  tiling.chunk_sets = sets();
  tiling.run_lists = tiling.lines.taps * tiling.channels.size < kOwnPatches ? 1 : tiling.lines.kernel_rows;
  return tiling;
}

template <class Terms>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  typename Terms::Element *lines, *zeros;
  T* grads;
  Sum *sums, *result;
  LineTap* line_taps;
  LineCache::Slot* slots;
  PositionPiece<3>* pieces;
  int64_t* sets;       // [pieces, kernel rows]: the slot of a set, or -1 beyond the image
  Run<T>* runs;        // [lists, runs]
  int64_t* run_count;  // [lists]
  const T** run_rows;  // [lists, runs, patches of a list]
};

// Lists the runs of some pieces and their rows, one for each tap and channel of a list.
template <class Terms>
void list_runs(const WeightGrad<3>& problem, const Tiling& tiling, int64_t channels, int64_t most_runs, int64_t count,
               const Buffers<Terms>& buffers) {
  using T = typename Terms::T;
  const LinePlan<3>& lines = tiling.lines;
  const PlaneLayout<3>& output = problem.grad_output.layout;
  const int64_t list_rows = tiling.list_rows(), list_patches = tiling.list_patches();
  for (int64_t list = 0; list < tiling.run_lists; ++list) {
    Run<T>* const list_runs = buffers.runs + list * most_runs;
    const T** rows = buffers.run_rows + list * most_runs * list_patches;
    int64_t runs = 0, term = 0, block = 0;
    for (int64_t p = 0; p < count; ++p) {
      const int64_t* const sets = buffers.sets + p * lines.kernel_rows + list * list_rows;
      const bool border = std::all_of(sets, sets + list_rows, [](int64_t set) { return set < 0; });
      const auto add = [&](int64_t length, bool tail) {
        const int64_t b = tiling.in_place ? offset_of<3>(buffers.pieces[p], output) : term;
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
        if (runs > 0 && block + length > tiling.block) {
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
template <class Terms>
void lay_out_grads(const Terms& terms, const PlaneLayout<3>& layout, const typename Terms::From* from,
                   const PositionPiece<3>* pieces, int64_t count, int64_t lanes, int64_t width, typename Terms::T* to) {
  const int64_t step = layout.axis_stride[2];
  for (int64_t p = 0; p < count;) {
    const int64_t offset = offset_of<3>(pieces[p], layout);
    int64_t positions = pieces[p].length;
    // Pieces that are contiguous in memory are as one.
    for (++p;
         p < count && positions % Terms::kHalves == 0 && offset_of<3>(pieces[p], layout) == offset + positions * step;
         ++p)
      positions += pieces[p].length;
    terms.pack.transpose({from + offset, layout.stride[2], step, lanes, positions, width}, to, width);
    to += Terms::count(positions) * width;
  }
}

template <class Terms>
class LinesJob final : public BlocksJob<LinesJob<Terms>, Terms> {
  using Base = BlocksJob<LinesJob<Terms>, Terms>;
  using typename Base::From;
  using typename Base::Sum;
  using typename Base::T;
  using Element = typename Terms::Element;
  using Base::problem_;
  using Base::terms_;

 public:
  LinesJob(const Terms& terms, const WeightGrad<3>& problem)
      : Base(terms, problem),
        tiling_(tiling_of(terms, problem)),
        most_runs_(tiling_.chunk_pieces * (tiling_.lines.piece == problem.geometry.positions[2] ? 1 : Terms::kHalves)) {
    this->plan_tasks(tiling_.splits, tiling_.blocks(), tiling_.panel_rows,
                     "rows of the image are brought into lines, which all taps read");
  }

  Buffers<Terms> buffers(Carver& carver) const {
    const LinePlan<3>& lines = tiling_.lines;
    return {carver.take<Element>(tiling_.chunk_sets * lines.numel),
            carver.take<Element>(lines.piece),
            carver.take<T>(tiling_.in_place ? 0 : tiling_.chunk_pieces * lines.piece * tiling_.panel_rows),
            carver.take<Sum>(tiling_.panels.size * tiling_.panel_sums()),
            carver.take<Sum>(terms_.tiles.lanes * tiling_.channels.size * tiling_.taps),
            carver.take<LineTap>(lines.taps),
            carver.take<LineCache::Slot>(tiling_.chunk_sets),
            carver.take<PositionPiece<3>>(tiling_.chunk_pieces),
            carver.take<int64_t>(tiling_.chunk_pieces * lines.kernel_rows),
            carver.take<Run<T>>(tiling_.run_lists * most_runs_),
            carver.take<int64_t>(tiling_.run_lists),
            carver.take<const T*>(tiling_.run_lists * most_runs_ * tiling_.list_patches())};
  }

  void run_block(Task<Terms> task, const Buffers<Terms>& own) const {
    const Range channels = task.next(tiling_.channels), panels = task.next(tiling_.panels);
    const LinePlan<3>& lines = tiling_.lines;
    for (int64_t i = 0; i < lines.taps; ++i) own.line_taps[i] = lines.tap(i, problem_.geometry);
    std::fill_n(own.zeros, lines.piece, Element{});
    LineCache cache(own.slots, tiling_.chunk_sets);
    for (int64_t piece = task.units.begin; piece < task.units.end; piece += tiling_.chunk_pieces) {
      const int64_t pieces = std::min(tiling_.chunk_pieces, task.units.end - piece);
      gather(task, channels, piece, pieces, cache, own);
      for (int64_t panel = panels.begin; panel < panels.end; ++panel)
        multiply(task, channels.size(), panel, pieces, piece == task.units.begin ? Start::zero : Start::sum,
                 own.sums + (panel - panels.begin) * tiling_.panel_sums(), own);
    }
    for (int64_t panel = panels.begin; panel < panels.end; ++panel)
      task.write_lanes(own.sums + (panel - panels.begin) * tiling_.panel_sums(), lanes_of(panel), tiling_.taps,
                       channels.size(), own.result,
                       (panel * tiling_.panel_rows * problem_.channels() + channels.begin) * tiling_.taps,
                       problem_.channels() * tiling_.taps);
  }

 private:
  int64_t lanes_of(int64_t panel) const {
    return std::min(tiling_.panel_rows, problem_.rows() - panel * tiling_.panel_rows);
  }

  // The lines that some pieces read, and the runs that they are multiplied in.
  void gather(const Task<Terms>& task, Range channels, int64_t first, int64_t pieces, LineCache& cache,
              const Buffers<Terms>& own) const {
    const PlaneLayout<3>& image = problem_.image.layout;
    const From* const plane = reinterpret_cast<const From*>(problem_.image.data) + task.group * image.stride[1] +
                              channels.begin * image.stride[2];
    for (int64_t p = 0; p < pieces; ++p) own.pieces[p] = tiling_.lines.at(first + p, problem_.geometry);
    fetch_lines(terms_, tiling_.lines, problem_.geometry, image, plane, channels.size(), task.taps, own.pieces, pieces,
                cache, own.lines, own.sets);
    list_runs<Terms>(problem_, tiling_, channels.size(), most_runs_, pieces, own);
  }

  // Adds to the sums of one panel what some pieces contribute.
  void multiply(const Task<Terms>& task, int64_t channels, int64_t panel, int64_t pieces, Start start, Sum* sums,
                const Buffers<Terms>& own) const {
    const PlaneLayout<3>& output = problem_.grad_output.layout;
    const int64_t lanes = lanes_of(panel), width = terms_.width(lanes);
    const int64_t list_patches = tiling_.list_rows() * tiling_.lines.taps * channels;
    const From* const from = reinterpret_cast<const From*>(problem_.grad_output.data) + task.group * output.stride[1] +
                             panel * tiling_.panel_rows * output.stride[2];
    const bool in_place = tiling_.in_place;
    if (!in_place) lay_out_grads(terms_, output, from, own.pieces, pieces, lanes, width, own.grads);
    TileArguments<T> arguments{nullptr,
                               0,
                               0,
                               in_place ? reinterpret_cast<const T*>(from) : own.grads,
                               in_place ? 1 : width,
                               in_place ? output.axis_stride[2] : width,
                               sums,
                               width,
                               start,
                               nullptr};
    for (int64_t list = 0; list < tiling_.run_lists; ++list) {
      arguments.runs = own.runs + list * most_runs_;
      arguments.run_count = own.run_count[list];
      for (int64_t patch = 0, rows; patch < list_patches; patch += rows) {
        rows = terms_.tile_rows(width, list_patches - patch);
        arguments.first_row = patch;
        terms_.multiply(width, rows, arguments);
        arguments.c += rows * width;
      }
    }
  }

  const Tiling tiling_;
  const int64_t most_runs_;  // of a list
};

}  // namespace

const char* decline_lines(const OneImage<WeightGrad<3>>& problem) {
  if (!has_terms(problem->image.dtype)) return kNoTerms;
  if (problem->geometry.positions[2] < kShortRow)
    return "runs of fewer than 8 positions cost more than gathered patches";
  return nullptr;
}

// With a single tap an element serves only panels of the other operand, whichever of the two engines lays it out. The
// one of rows lays out long rows of the image and reads grad_output where it lies.
const char* decline_pointwise(const OneImage<WeightGrad<3>>& problem) {
  const Geometry<3>& geometry = problem->geometry;
  if (geometry.tap_numel() != 1) return "the window has more than one tap";
  if (geometry.stride[2] != 1) return "the window moves by more than one position";
  if (problem->grad_output.layout.stride[2] != 1) return "channels of grad_output are not contiguous";
  if (problem->rows() % kWholeRows != 0)
    return "output channels are not a multiple of 16, so that vectors are not full";
  return decline_lines(problem);
}

const char* plan_lines(const WeightGrad<3>& problem, const Call&, JobSlot& slot) {
  with_terms(problem.image.dtype,
             [&](const auto& terms) { slot.emplace<LinesJob<std::decay_t<decltype(terms)>>>(terms, problem); });
  return nullptr;
}

}  // namespace unfoldconv::cpu::weight_grad
