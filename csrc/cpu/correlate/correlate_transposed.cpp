// The correlation engine with positions in the lanes (correlate_engines.h), for weights that transposed_rows.h
// describes.
//
//   output[n, g, m, p] = bias[g, m] + sum over chunks of channels, taps t, channels c of the chunk of
//                        weight[g, c, (m, t)] * image[n, g, c, window(p, t)]
//
// A task owns some panels of positions, counted over all images, and some rows of the output, whose sums it keeps. For
// a chunk of the channels it gathers what all taps of its panels read. Then it transposes a few rows of the weight at a
// time and multiplies every panel by them while they are in cache, so that nothing of a transposed weight goes to
// memory. Taps that read only padding in a panel are left out, which changes no bit of a sum, unless their weight is
// infinite or NaN.
#include "cpu/correlate/correlate_engines.h"
#include "cpu/correlate/transposed_plan.h"
#include "cpu/correlate/transposed_rows.h"
#include "cpu/shared/positions.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {
namespace {

// Lines of memory that are to be in cache soon: of so many channels, and of how many of them at a time.
struct Ahead {
  const char* from;
  int64_t step, bytes, channels, share;

  void fetch() {
    for (const int64_t rest = std::max<int64_t>(0, channels - share); channels > rest; --channels, from += step)
      for (int64_t byte = 0; byte < bytes; byte += kAlignment) __builtin_prefetch(from + byte, 0, 2);
  }
};

// A panel of positions of a task.
struct TaskPanel {
  int64_t lanes, width, runs;
  int pieces, stores;  // of its positions: to gather, and to store
};

template <class Terms>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  T* panels;  // [panel][terms, lanes]
  Sum* sums;  // [panel][rows, lanes]
  T* lines;   // [rows, taps, pitch]
  TaskPanel* of_task;
  PositionPiece<3>* positions;  // of each panel
  TapPieces* taps;              // [panels, taps]
  Piece* pieces;                // of each panel and tap
  Run<T>* runs;                 // [panels, taps]
  int64_t* run_taps;            // of each run
  const T** run_rows;           // of each run, [rows of a tile]
};

template <class Terms>
class TransposedJob final : public TaskJob<TransposedJob<Terms>> {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;

 public:
  TransposedJob(const Terms& terms, const Correlation<3>& problem)
      : terms_(terms),
        problem_(problem),
        tile_rows_(terms.tiles.rows),
        positions_(problem.batch() * problem.geometry.position_numel()) {}

  // Returns false where a task does not fit into the limit of memory.
  bool find_plan() {
    const auto fits = [&](const TransposedPlan& plan) {
      cut_ = plan;
      Carver needed;
      buffers(needed);
      return needed.bytes() <= workspace_limit().cpu;
    };
    const std::optional<TransposedPlan> found = transposed_plan(terms_, problem_, fits);
    if (!found) return false;
    cut_ = *found;
    Plan& plan = this->plan_;
    plan.why =
        "positions fill the vectors, and weights are transposed a few rows at a time, because neither has channels "
        "that are neighbours in memory";
    plan.tile_rows = tile_rows_;
    plan.tile_lanes = cut_.panel_lanes;
    plan.tasks = cut_.blocks * problem_.groups() * cut_.row_parts;
    plan.serial = problem_.flops() < kSerialFlops;
    this->measure();
    return true;
  }

  Buffers<Terms> buffers(Carver& carver) const {
    const TransposedPlan& p = cut_;
    const int64_t panel_taps = p.panels * p.taps;
    return {carver.take<T>(panel_taps * p.chunk * p.panel_lanes),
            carver.take<Sum>(p.panels * p.task_rows * p.panel_lanes),
            carver.take<T>(p.transposed_rows * p.taps * p.pitch),
            carver.take<TaskPanel>(p.panels),
            carver.take<PositionPiece<3>>(p.panels * p.tap_pieces),
            carver.take<TapPieces>(panel_taps),
            carver.take<Piece>(panel_taps * p.tap_pieces),
            carver.take<Run<T>>(panel_taps),
            carver.take<int64_t>(panel_taps),
            carver.take<const T*>(panel_taps * tile_rows_)};
  }

  void share(Carver& carver) {
    bias_ = carver.take<Sum>(problem_.bias ? problem_.groups() * problem_.rows() : 0);
    tap_list_ = carver.take<Tap<3>>(cut_.taps);
    tap_lines_ = carver.take<int64_t>(cut_.taps);
  }

  void fill(const Call&) {
    list_offsets<3>(problem_.geometry.kernel, problem_.weight.layout.axis_stride, tap_lines_);
    first_line_ = *std::min_element(tap_lines_, tap_lines_ + cut_.taps);
    for (int64_t tap = 0; tap < cut_.taps; ++tap) tap_lines_[tap] -= first_line_;
    list_taps<3>(problem_.geometry, problem_.image.layout.axis_stride, tap_list_);
    if (problem_.bias) widen_bias<Terms>(problem_.bias, problem_.groups(), 1, problem_.rows(), problem_.rows(), bias_);
  }

  void run_task(const Call&, int64_t task, const Buffers<Terms>& own) const {
    const TileScope<T> scope(terms_.tiles);
    const int64_t first_row = task % cut_.row_parts * cut_.task_rows;
    const int64_t end_row = std::min(problem_.rows(), first_row + cut_.task_rows);
    const int64_t group = task / cut_.row_parts % problem_.groups();
    const int64_t first = task / cut_.row_parts / problem_.groups() * cut_.block_lanes;
    const int64_t end = std::min(positions_, first + cut_.block_lanes);
    const int64_t panels = ceil_div(end - first, cut_.panel_lanes);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t begin = first + panel * cut_.panel_lanes;
      place_panel(begin, std::min(cut_.panel_lanes, end - begin), panel, own);
    }
    for (int64_t chunk = 0; chunk < cut_.chunks; ++chunk) {
      for (int64_t panel = 0; panel < panels; ++panel) gather(group, chunk, panel, own);
      for (int64_t row = first_row; row < end_row; row += cut_.transposed_rows) {
        const int64_t rows = std::min(cut_.transposed_rows, end_row - row);
        transpose(group, chunk, row, rows, own.lines);
        const bool last = row + rows == end_row;
        Ahead ahead =
            last ? weight_ahead(group, chunk + 1, first_row, end_row) : weight_ahead(group, chunk, row + rows, end_row);
        ahead.share = ceil_div(ahead.channels, panels * ceil_div(rows, tile_rows_));
        for (int64_t panel = 0; panel < panels; ++panel)
          multiply(group, chunk, panel, row, rows, first_row, own, ahead);
      }
    }
    for (int64_t panel = 0; panel < panels; ++panel) store(group, panel, first_row, end_row, own);
  }

 private:
  int64_t chunk_terms(int64_t chunk) const { return std::min(cut_.chunk, cut_.tap_terms - chunk * cut_.chunk); }

  // Lists what each tap reads at the positions of a panel, and its runs of a chunk.
  void place_panel(int64_t first, int64_t lanes, int64_t slot, const Buffers<Terms>& own) const {
    const Geometry<3>& geometry = problem_.geometry;
    TaskPanel& of_task = own.of_task[slot];
    PositionPiece<3>* const positions = own.positions + slot * cut_.tap_pieces;
    of_task = {lanes, terms_.width(lanes), 0, split_positions<3>(first, lanes, geometry.positions, positions), 0};
    Piece* next = own.pieces + slot * cut_.taps * cut_.tap_pieces;
    TapPieces* const taps = own.taps + slot * cut_.taps;
    for (int64_t tap = 0; tap < cut_.taps; ++tap)
      next = pieces_of_tap<3>(tap_list_[tap], geometry, problem_.image.layout, positions, of_task.pieces,
                              terms_.tiles.lanes, taps[tap], next);
    of_task.stores = is_line<3>(problem_.output.layout, geometry.positions) ? join_pieces<3>(positions, of_task.pieces)
                                                                            : of_task.pieces;
    // A block of a sum is that of so many taps, whichever of them are left out.
    const int64_t block_taps = std::max<int64_t>(1, kBlockTerms<T> / cut_.chunk);
    const int vectors = static_cast<int>(of_task.width / terms_.tiles.lanes);
    Run<T>* const runs = own.runs + slot * cut_.taps;
    int64_t* const run_taps = own.run_taps + slot * cut_.taps;
    for (int64_t tap = 0; tap < cut_.taps; ++tap) {
      if (std::all_of(taps[tap].count, taps[tap].count + vectors, [](int32_t count) { return count == 0; })) continue;
      const int64_t run = of_task.runs++;
      if (run > 0) runs[run - 1].ends_block = tap / block_taps != run_taps[run - 1] / block_taps;
      const T** const rows = own.run_rows + (slot * cut_.taps + run) * tile_rows_;
      for (int64_t row = 0; row < tile_rows_; ++row)
        rows[row] = own.lines + (row * cut_.taps + tap_lines_[tap]) * cut_.pitch;
      runs[run] = {rows, 0, 0, false};
      run_taps[run] = tap;
    }
  }

  void gather(int64_t group, int64_t chunk, int64_t slot, const Buffers<Terms>& own) const {
    const PlaneLayout<3>& image = problem_.image.layout;
    const TaskPanel& of_task = own.of_task[slot];
    const int64_t begin = chunk * cut_.chunk, count = chunk_terms(chunk);
    Run<T>* const runs = own.runs + slot * cut_.taps;
    T* const to = own.panels + slot * cut_.taps * cut_.chunk * cut_.panel_lanes;
    PanelArguments<From> panel{reinterpret_cast<const From*>(problem_.image.data) + group * image.stride[1],
                               image.stride[2],
                               problem_.geometry.stride[2] * image.axis_stride[2],
                               problem_.channels(),
                               1,
                               0,
                               0,
                               nullptr,
                               static_cast<int>(of_task.width / terms_.tiles.lanes)};
    for (int64_t run = 0; run < of_task.runs; ++run) runs[run].b = run * count, runs[run].length = count;
    for (int64_t term = 0; term < count; term += kGatherTerms)
      for (int64_t run = 0; run < of_task.runs; ++run) {
        panel.first = begin + term;
        panel.count = std::min(kGatherTerms, count - term);
        panel.tap_pieces = own.taps + slot * cut_.taps + own.run_taps[slot * cut_.taps + run];
        terms_.pack.panel(panel, to + (run * count + term) * of_task.width);
      }
  }

  // The weight that is transposed next: its rows and taps of some channels.
  Ahead weight_ahead(int64_t group, int64_t chunk, int64_t row, int64_t end_row) const {
    if (chunk == cut_.chunks) return {};
    const Planes<3> from = problem_.weight.at(group, row, chunk * cut_.chunk * Terms::kHalves);
    const int64_t size = sizeof(From), rows = std::min(cut_.transposed_rows, end_row - row);
    return {from.data + first_line_ * size, from.layout.stride[2] * size, rows * cut_.taps * size,
            chunk_terms(chunk) * Terms::kHalves, 0};
  }

  // lines[row, tap][c] = weight[first + c][row, tap], for the channels c of a chunk.
  void transpose(int64_t group, int64_t chunk, int64_t row, int64_t rows, T* lines) const {
    const auto& layout = problem_.weight.layout;
    const int64_t begin = chunk * cut_.chunk * Terms::kHalves, count = chunk_terms(chunk) * Terms::kHalves;
    const From* const from = reinterpret_cast<const From*>(problem_.weight.at(group, row, begin).data) + first_line_;
    terms_.pack.turn(from, layout.stride[2], rows * cut_.taps, count, lines, cut_.pitch * Terms::kHalves);
  }

  Sum* sums_of(int64_t slot, int64_t row_of_task, const Buffers<Terms>& own) const {
    return own.sums + slot * cut_.task_rows * cut_.panel_lanes + row_of_task * own.of_task[slot].width;
  }

  // sums[m, p] += lines[m, k] * panel[k, p], for the terms k of a chunk.
  void multiply(int64_t group, int64_t chunk, int64_t slot, int64_t first, int64_t count, int64_t first_of_task,
                const Buffers<Terms>& own, Ahead& ahead) const {
    const TaskPanel& of_task = own.of_task[slot];
    const int64_t width = of_task.width;
    TileArguments<T> tile{own.runs + slot * cut_.taps,
                          of_task.runs,
                          0,
                          own.panels + slot * cut_.taps * cut_.chunk * cut_.panel_lanes,
                          width,
                          width,
                          nullptr,
                          width,
                          chunk > 0       ? Start::sum
                          : problem_.bias ? Start::row_bias
                                          : Start::zero,
                          nullptr};
    for (int64_t row = 0; row < count; row += tile_rows_) {
      tile.a_offset = row * cut_.taps * cut_.pitch;
      tile.c = sums_of(slot, first + row - first_of_task, own);
      if (problem_.bias) tile.bias = bias_ + group * problem_.rows() + first + row;
      ahead.fetch();
      terms_.multiply(width, std::min(tile_rows_, count - row), tile);
    }
  }

  void store(int64_t group, int64_t slot, int64_t first_row, int64_t end_row, const Buffers<Terms>& own) const {
    const PlaneLayout<3>& output = problem_.output.layout;
    const PositionPiece<3>* const positions = own.positions + slot * cut_.tap_pieces;
    const int64_t step = position_step<3>(output, problem_.geometry.positions);
    for (int64_t row = first_row; row < end_row; ++row) {
      From* const to =
          reinterpret_cast<From*>(problem_.output.data) + group * output.stride[1] + row * output.stride[2];
      for (int piece = 0; piece < own.of_task[slot].stores; ++piece)
        terms_.pack.store(sums_of(slot, row - first_row, own) + positions[piece].lane,
                          to + offset_of<3>(positions[piece], output), step, positions[piece].length);
    }
  }

  const Terms terms_;
  const Correlation<3>& problem_;
  const int64_t tile_rows_, positions_;
  TransposedPlan cut_{};
  // What all tasks read.
  Sum* bias_ = nullptr;
  Tap<3>* tap_list_ = nullptr;
  int64_t* tap_lines_ = nullptr;  // of the lines of a row
  int64_t first_line_ = 0;        // from where the weight begins
};

}  // namespace

const char* decline_transposed(const CorrelateImage& problem) {
  const Planes<3>& weight = problem->weight;
  const Geometry<3>& geometry = problem->geometry;
  if (problem->variants() > 1) return "outputs that share their columns are multiplied from a panel";
  if (problem->image.layout.stride[2] == 1) return "channels of the image are neighbours in memory";
  if (weight.layout.stride[2] == 1) return "channels of the weight are neighbours in memory already";
  if (!transposed_by_rows<3>(weight.layout, geometry.kernel, geometry.position_numel()))
    return "more than 1024 positions, or rows and taps of the weight are not neighbours in memory";
  double sums[3];
  std::copy(geometry.positions, geometry.positions + 3, sums);
  const double padding = padding_share<3>(geometry, sums);
  const char* reason = kNoTerms;
  with_terms(weight.dtype, [&](const auto& terms) {
    reason = worth_transposing<std::decay_t<decltype(terms)>>(problem->channels(), padding)
                 ? nullptr
                 : "runs of so few channels, with so little padding left out, do not repay a transposed weight";
  });
  return reason;
}

const char* plan_transposed(const Correlation<3>& problem, const Call&, JobSlot& slot) {
  bool fits = false;
  with_terms(problem.weight.dtype, [&](const auto& terms) {
    fits = slot.emplace<TransposedJob<std::decay_t<decltype(terms)>>>(terms, problem).find_plan();
  });
  return fits ? nullptr : "no task fits the workspace limit";
}

}  // namespace unfoldconv::cpu
