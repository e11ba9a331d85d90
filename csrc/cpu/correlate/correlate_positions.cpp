// The correlation engine with positions in the lanes (correlate_engines.h).
//
// A task owns a panel of positions, counted over all images, and some groups or rows of the output. It gathers the
// terms of the panel, a chunk of them at a time, and runs every tile of rows over the chunk while that is in cache.
// Terms are in the order in which the weight has them: channels first and then taps, or taps first, where a sum is a
// run for each tap and taps that read nothing but padding are left out.
#include "cpu/correlate/correlate_engines.h"
#include "cpu/correlate/positions_plan.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kLinesAhead = 4;  // of each run of the next tile's weights, until hardware fetches ahead by itself

// Where the terms of a run come from.
struct RunOrigin {
  int64_t weight;      // in elements, from the beginning of a row
  int64_t tap, first;  // with taps first: which, and of its terms the first
};

template <class Terms>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  T* panel;
  Sum *sums, *tile;
  PositionPiece<3>* positions;
  TapPieces* taps;
  Piece* pieces;
  Run<T>* runs;
  RunOrigin* origins;  // of each run
  const T** run_rows;  // [runs, rows of a tile]
};

// Gathers the terms of a panel, taps first, and lists their runs; returns how many there are. To leave out a tap that
// reads only padding changes no bit of a sum, unless its weight is infinite or NaN.
template <class Terms>
int64_t gather_taps(const Terms& terms, PanelArguments<typename Terms::From> panel, const int64_t* weight_offsets,
                    const Buffers<Terms>& buffers) {
  using T = typename Terms::T;
  const int64_t tap_terms = panel.channels / Terms::kHalves, width = int64_t{panel.vectors} * terms.tiles.lanes;
  const int64_t begin = panel.first, end = begin + panel.count;
  const int64_t block_taps = taps_of_block<T>(tap_terms);
  int64_t runs = 0, rows = 0;
  for (int64_t tap = begin / tap_terms; tap * tap_terms < end; ++tap) {
    const int32_t* const pieces = buffers.taps[tap].count;
    if (std::all_of(pieces, pieces + panel.vectors, [](int32_t count) { return count == 0; })) continue;
    const int64_t first = std::max<int64_t>(0, begin - tap * tap_terms);
    const int64_t length = std::min(tap_terms, end - tap * tap_terms) - first;
    if (runs > 0 && tap / block_taps != buffers.origins[runs - 1].tap / block_taps)
      buffers.runs[runs - 1].ends_block = true;
    buffers.origins[runs] = {weight_offsets[tap] + first * Terms::kHalves, tap, first};
    buffers.runs[runs] = {buffers.run_rows + runs * terms.tiles.rows, rows, length, false};
    rows += length;
    ++runs;
  }
  const TapPieces* const taps = panel.tap_pieces;
  panel.taps = 1;
  for (int64_t term = 0; term < tap_terms; term += kGatherTerms)
    for (int64_t i = 0; i < runs; ++i) {
      const auto& [weight, tap, first] = buffers.origins[i];
      panel.first = std::max(term, first);
      panel.count = std::min(term + kGatherTerms, first + buffers.runs[i].length) - panel.first;
      panel.tap_pieces = taps + tap;
      if (panel.count > 0) terms.pack.panel(panel, buffers.panel + (buffers.runs[i].b + panel.first - first) * width);
    }
  return runs;
}

template <class Terms>
class PositionsJob final : public TaskJob<PositionsJob<Terms>> {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;
  using Own = Buffers<Terms>;

 public:
  PositionsJob(const Terms& terms, const Correlation<3>& problem)
      : terms_(terms),
        problem_(problem),
        cut_(plan_of(terms, problem)),
        taps_(problem.geometry.tap_numel()),
        positions_(problem.batch() * problem.geometry.position_numel()),
        in_place_(cut_.taps_first || rows_are_lines<Terms, 3>(problem.weight, problem.geometry.kernel)),
        output_lines_(is_line<3>(problem.output.layout, problem.geometry.positions)),
        pitch_(row_pitch<T>(cut_.terms)) {
    Plan& plan = this->plan_;
    plan.why =
        "positions fill the vectors, because channels are not neighbours in memory, or are few, or positions are";
    plan.tile_rows = terms.tiles.rows;
    plan.tile_lanes = cut_.panel_lanes;
    plan.tasks = cut_.panels * cut_.group_blocks * cut_.row_blocks;
    plan.serial = problem.flops() < kSerialFlops;
    this->measure();
    plan.copied_bytes = problem.weight_copy;
  }

  Own buffers(Carver& carver) const { return buffers(carver, cut_.panel_lanes, cut_.block_rows, cut_.tap_pieces); }

  Own buffers(Carver& carver, int64_t panel_lanes, int64_t block_rows, int64_t tap_pieces) const {
    const int64_t most_runs = cut_.taps_first ? taps_ : 1;  // of a chunk
    return {carver.take<T>(cut_.chunks.most_terms() * panel_lanes),
            carver.take<Sum>(cut_.chunks.count > 1 ? block_rows * panel_lanes : 0),
            carver.take<Sum>(terms_.tiles.rows * panel_lanes),
            carver.take<PositionPiece<3>>(tap_pieces),
            carver.take<TapPieces>(taps_),
            carver.take<Piece>(taps_ * tap_pieces),
            carver.take<Run<T>>(most_runs),
            carver.take<RunOrigin>(most_runs),
            carver.take<const T*>(most_runs * terms_.tiles.rows)};
  }

  void share(Carver& carver) {
    packed_ = carver.take<T>(in_place_ ? 0 : problem_.groups() * cut_.rows * pitch_);
    bias_ = carver.take<Sum>(problem_.bias ? problem_.groups() * cut_.rows : 0);
    tap_list_ = carver.take<Tap<3>>(taps_);
    weight_offsets_ = carver.take<int64_t>(taps_);
  }

  void fill(const Call&) {
    list_offsets<3>(problem_.geometry.kernel, problem_.weight.layout.axis_stride, weight_offsets_);
    if (!in_place_) pack_rows(terms_, problem_, pitch_, weight_offsets_, packed_);
    if (problem_.bias)
      widen_bias<Terms>(problem_.bias, problem_.groups(), problem_.variants(), problem_.rows(), cut_.rows, bias_);
    list_taps<3>(problem_.geometry, problem_.image.layout.axis_stride, tap_list_);
  }

  void run_task(const Call&, int64_t task, const Own& own) const {
    const TileScope<T> scope(terms_.tiles);
    Panel panel;
    panel.first_row = task % cut_.row_blocks * cut_.block_rows;
    panel.end_row = std::min(cut_.rows, panel.first_row + cut_.block_rows);
    const int64_t first_group = task / cut_.row_blocks % cut_.group_blocks * cut_.block_groups;
    const int64_t end_group = std::min(problem_.groups(), first_group + cut_.block_groups);
    panel.first = task / cut_.row_blocks / cut_.group_blocks * cut_.panel_lanes;
    panel.lanes = std::min(cut_.panel_lanes, positions_ - panel.first);
    panel.width = terms_.width(panel.lanes);
    place(panel, own);

    const PlaneLayout<3>& image = problem_.image.layout;
    for (int64_t group = first_group; group < end_group; ++group) {
      PanelArguments<From> from{reinterpret_cast<const From*>(problem_.image.data) + group * image.stride[1],
                                image.stride[2],
                                problem_.geometry.stride[2] * image.axis_stride[2],
                                problem_.channels(),
                                taps_,
                                0,
                                0,
                                own.taps,
                                static_cast<int>(panel.width / terms_.tiles.lanes)};
      for (int64_t chunk = 0; chunk < cut_.chunks.count; ++chunk) {
        from.first = cut_.chunks.first_term(chunk);
        from.count = std::min(cut_.terms, cut_.chunks.first_term(chunk + 1)) - from.first;
        int64_t runs = 1;
        if (cut_.taps_first) {
          runs = gather_taps(terms_, from, weight_offsets_, own);
        } else {
          terms_.pack.panel(from, own.panel);
          own.runs[0] = {own.run_rows, 0, from.count, true};
          own.origins[0] = {from.first * Terms::kHalves, 0, 0};
        }
        multiply(group, chunk, runs, panel, own);
      }
    }
  }

  // Whether the buffers of the widest panel, and half of them the list of what each tap reads, are within a limit:
  // panels are cut by the batch and by threads, on which no choice of an engine may depend.
  bool fits(int64_t limit) const {
    const int64_t lanes = terms_.most_lanes(),
                  tile_bytes = terms_.tiles.rows * lanes * static_cast<int64_t>(sizeof(Sum));
    const int64_t tiles = ceil_div(cut_.rows, int64_t{terms_.tiles.rows});
    const int64_t most_rows = std::clamp<int64_t>(limit / 4 / tile_bytes, 1, tiles) * terms_.tiles.rows;
    const int64_t pieces = most_pieces<3>(lanes, problem_.geometry.positions) + kTileVectors;
    Carver needed;
    buffers(needed, lanes, most_rows, pieces);
    return needed.bytes() <= limit && taps_ * pieces * static_cast<int64_t>(sizeof(Piece)) <= limit / 2;
  }

 private:
  // What a task computes: rows of the output at a panel of positions.
  struct Panel {
    int64_t first_row, end_row;
    int64_t first, lanes, width;  // width: lanes in whole vectors
    int stores;                   // pieces of positions that are neighbours in the output
    bool direct;                  // sums lie in the output as tiles write them
  };

  void place(Panel& panel, const Own& own) const {
    const Geometry<3>& geometry = problem_.geometry;
    const int pieces = split_positions<3>(panel.first, panel.lanes, geometry.positions, own.positions);
    Piece* next = own.pieces;
    for (int64_t tap = 0; tap < taps_; ++tap)
      next = pieces_of_tap<3>(tap_list_[tap], geometry, problem_.image.layout, own.positions, pieces,
                              terms_.tiles.lanes, own.taps[tap], next);
    panel.stores = output_lines_ ? join_pieces<3>(own.positions, pieces) : pieces;
    const int64_t per_image = geometry.position_numel();
    panel.direct = std::is_same_v<Sum, From> && output_lines_ && panel.lanes == panel.width &&
                   panel.first / per_image == (panel.first + panel.lanes - 1) / per_image;
  }

  const Element* weight_row(int64_t group, int64_t row) const {
    const int64_t variant = row / problem_.rows(), row_of_group = row % problem_.rows();
    if (!in_place_) return reinterpret_cast<const Element*>(packed_ + (group * cut_.rows + row) * pitch_);
    return reinterpret_cast<const Element*>(problem_.weight_of(variant).at(group, row_of_group).data);
  }

  // sums[row, position] (+)= weight[row, term] * panel[term, position] over a chunk; stores the last one.
  void multiply(int64_t group, int64_t chunk, int64_t runs, const Panel& panel, const Own& own) const {
    const PlaneLayout<3>& output = problem_.output.layout;
    const int64_t group_rows = problem_.rows(), tile_rows = terms_.tiles.rows, width = panel.width;
    const int64_t row_stride = in_place_ ? problem_.weight.layout.stride[1] : pitch_ * Terms::kHalves;
    const int64_t per_image = problem_.geometry.position_numel();
    const int64_t step = position_step<3>(output, problem_.geometry.positions);
    for (int64_t row = panel.first_row; row < panel.end_row;) {
      // A tile keeps to one output.
      const int64_t variant = row / group_rows, row_of_group = row % group_rows;
      const int64_t rows = std::min({tile_rows, panel.end_row - row, group_rows - row_of_group});
      From* const target = reinterpret_cast<From*>(problem_.output_of(variant).data) + group * output.stride[1] +
                           row_of_group * output.stride[2];
      const Element* const weight = weight_row(group, row);
      for (int64_t j = 0; j < runs; ++j)
        for (int64_t i = 0; i < rows; ++i)
          own.run_rows[j * tile_rows + i] = reinterpret_cast<const T*>(weight + i * row_stride + own.origins[j].weight);
      if (row + rows < panel.end_row) fetch_ahead(weight_row(group, row + rows), row_stride, rows, runs, own);
      TileArguments<T> tile{own.runs, runs, 0, own.panel, width, width, own.tile, width, Start::zero, nullptr};
      if (panel.direct) {
        tile.c = reinterpret_cast<Sum*>(target + panel.first / per_image * output.stride[0] + panel.first % per_image);
        tile.c_step = output.stride[2];
      } else if (cut_.chunks.count > 1) {
        tile.c = own.sums + (row - panel.first_row) * width;
      }
      if (chunk > 0) {
        tile.start = Start::sum;
      } else if (problem_.bias) {
        tile.start = Start::row_bias;
        tile.bias = bias_ + group * cut_.rows + row;
      }
      terms_.multiply(width, rows, tile);
      if (!panel.direct && chunk == cut_.chunks.count - 1)
        for (int64_t i = 0; i < rows; ++i)
          for (int piece = 0; piece < panel.stores; ++piece)
            terms_.pack.store(tile.c + i * width + own.positions[piece].lane,
                              target + i * output.stride[2] + offset_of<3>(own.positions[piece], output), step,
                              own.positions[piece].length);
      row += rows;
    }
  }

  static void fetch_ahead(const Element* weight, int64_t row_stride, int64_t rows, int64_t runs, const Own& own) {
    for (int64_t j = 0; j < runs; ++j)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t line = 0; line < kLinesAhead; ++line)
          __builtin_prefetch(weight + i * row_stride + own.origins[j].weight +
                                 line * (kAlignment / static_cast<int64_t>(sizeof(Element))),
                             0, 2);
  }

  const Terms terms_;
  const Correlation<3>& problem_;
  const PositionsPlan cut_;
  const int64_t taps_, positions_;
  const bool in_place_;      // the weight is read where it lies
  const bool output_lines_;  // positions of an image are a line in the output
  const int64_t pitch_;      // of a packed row of the weight
  // What all tasks read.
  T* packed_ = nullptr;
  Sum* bias_ = nullptr;
  Tap<3>* tap_list_ = nullptr;
  int64_t* weight_offsets_ = nullptr;
};

}  // namespace

const char* plan_few_positions(const Correlation<3>& problem, const Call& call, JobSlot& slot) {
  if (const char* const reason = decline_channels(OneImage(problem))) return reason;
  bool few = false;
  with_terms(problem.image.dtype, [&](const auto& terms) {
    using Terms = std::decay_t<decltype(terms)>;
    const int64_t row_bytes =
        problem.variants() * problem.rows() * static_cast<int64_t>(sizeof(typename Terms::Element));
    few = taps_are_lines<Terms>(problem.weight) && most_terms(terms) >= kChunkTerms &&
          row_bytes >= kGatherBytes * problem.batch() * problem.geometry.position_numel();
  });
  return few ? plan_positions(problem, call, slot) : "to pack the weight takes less time than to gather all patches";
}

const char* decline_positions(const CorrelateImage& problem) {
  return has_terms(problem->image.dtype) ? nullptr : kNoTerms;
}

const char* plan_positions(const Correlation<3>& problem, const Call&, JobSlot& slot) {
  bool fits = false;
  with_terms(problem.image.dtype, [&](const auto& terms) {
    fits = slot.emplace<PositionsJob<std::decay_t<decltype(terms)>>>(terms, problem).fits(workspace_limit().cpu);
  });
  return fits ? nullptr : "a panel and what the taps read of it do not fit the workspace limit";
}

}  // namespace unfoldconv::cpu
