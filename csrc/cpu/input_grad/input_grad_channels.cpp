// The input gradient of few channels that are contiguous, as those of grad_output are (input_grad_engines.h).
//
// Columns have (tap, channel) in the lanes: a pixel of grad_output is multiplied where it lies. The channels and taps
// of a row of a window are neighbours in them, as in grad_input, so that windows are added up by vectors.
#include "cpu/input_grad/input_grad_engines.h"
#include "cpu/input_grad/input_grad_rows.h"
#include "cpu/shared/terms.h"

namespace unfoldconv::cpu::input_grad {
namespace {

constexpr int64_t kMostChunks = 256;    // of a row that are computed at a time
constexpr int64_t kLeastPositions = 6;  // of a row; fewer do not fill a tile
constexpr int64_t kLeastChunk = 4;      // elements; shorter ones leave too many lanes empty when windows are added up

// How a problem is cut up.
struct Tiling : OverlapAddRows {
  int64_t channels, rows;
  int64_t window, chunk;        // elements of a row of a window, and of a chunk
  int64_t terms, lanes, panel;  // of a sum, of the columns of a block, of a panel of them
  bool gathered;                // grad_output has to be widened, or its pairs filled up

  template <class Terms>
  Tiling(const Terms& kind, const InputGrad<3>& problem)
      : OverlapAddRows(problem.geometry, problem.grad_input.layout.count[0], kMostChunks) {
    channels = problem.grad_output.layout.count[2];
    rows = problem.grad_input.layout.count[2];
    window = problem.geometry.kernel[2] * rows;
    chunk = problem.geometry.stride[2] * rows;
    terms = Terms::count(channels);
    lanes = kind.width(block_rows * window);
    panel = kind.width(ceil_div(lanes, ceil_div(lanes, kind.most_lanes())));
    gathered = (!std::is_same_v<typename Terms::T, typename Terms::From> && Terms::kHalves == 1) ||
               channels % Terms::kHalves != 0;
  }
};

template <class Terms>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  T* lines;             // [positions, terms]
  const T** from;       // [positions]
  Sum *columns, *sums;  // [slots, positions, lanes], [piece, chunk]
  LineCache::Slot* slots;
  FoldSource<Sum>* sources;
};

// The weight as [block][panel][term][lane], 0 beyond the last lane.
template <class Terms>
void pack_weight(const InputGrad<3>& problem, const Tiling& tiling, typename Terms::T* packed) {
  using From = typename Terms::From;
  constexpr int64_t halves = Terms::kHalves;
  const int64_t block_columns = tiling.block_rows * tiling.window;
  auto* to = reinterpret_cast<typename Terms::Element*>(packed);
  for (int64_t block = 0; block < problem.geometry.kernel[0]; ++block, to += tiling.terms * halves * tiling.lanes)
    for (int64_t lane = 0; lane < tiling.lanes; ++lane) {
      const int64_t first = lane / tiling.panel * tiling.panel, width = std::min(tiling.panel, tiling.lanes - first);
      const int64_t column = block * block_columns + lane;
      const bool any = lane < block_columns;
      const int64_t offset = any ? weight_offset(problem, column / tiling.rows, column % tiling.rows) : 0;
      for (int64_t m = 0; m < tiling.terms * halves; ++m) {
        typename Terms::Element value{};
        if (any && m < tiling.channels) {
          const From* const from =
              reinterpret_cast<const From*>(problem.weight.data) + offset + m * problem.weight.layout.stride[2];
          if constexpr (halves == 2)
            std::memcpy(&value, from, sizeof value);
          else
            value = static_cast<typename Terms::T>(*from);
        }
        to[(tiling.terms * first + m / halves * width + lane - first) * halves + m % halves] = value;
      }
    }
}

// The columns of the positions [first, first + tiling.positions) of a row of grad_output, 0 at those that it lacks.
template <class Terms>
void multiply_row(const Terms& terms, const InputGrad<3>& problem, const Tiling& tiling,
                  const typename Terms::From* row, int64_t first, const typename Terms::T* packed,
                  const Buffers<Terms>& buffers, typename Terms::Sum* columns) {
  using T = typename Terms::T;
  const int64_t step = problem.grad_output.layout.axis_stride[2];
  const int64_t begin = std::clamp<int64_t>(-first, 0, tiling.positions);
  const int64_t end = std::clamp<int64_t>(problem.geometry.positions[2] - first, begin, tiling.positions);
  std::fill(columns, columns + begin * tiling.lanes, typename Terms::Sum{});
  std::fill(columns + end * tiling.lanes, columns + tiling.positions * tiling.lanes, typename Terms::Sum{});
  for (int64_t i = begin; i < end; ++i) {
    const auto* const from = row + (first + i) * step;
    if (tiling.gathered) {
      T* const line = buffers.lines + i * tiling.terms;
      terms.pack.line(from, 1, line, tiling.channels);
      buffers.from[i] = line;
    } else {
      buffers.from[i] = reinterpret_cast<const T*>(from);
    }
  }
  for (int64_t lane = 0; lane < tiling.lanes; lane += tiling.panel) {
    const int64_t width = std::min(tiling.panel, tiling.lanes - lane);
    for (int64_t i = begin; i < end; i += terms.tiles.rows) {
      const Run<T> line{buffers.from + i, 0, tiling.terms, true};
      terms.multiply(width, std::min<int64_t>(terms.tiles.rows, end - i),
                     {&line, 1, 0, packed + tiling.terms * lane, 0, width, columns + i * tiling.lanes + lane,
                      tiling.lanes, Start::zero, nullptr});
    }
  }
}

template <class Terms>
class ChannelsJob final : public RowsJob<ChannelsJob<Terms>, Terms, Tiling> {
  using Base = RowsJob<ChannelsJob<Terms>, Terms, Tiling>;
  using typename Base::From;
  using typename Base::T;
  using Sum = typename Terms::Sum;
  using Base::problem_;
  using Base::terms_;
  using Base::tiling_;

 public:
  ChannelsJob(const Terms& terms, const InputGrad<3>& problem)
      : Base(terms, problem),
        column_numel_(tiling_.positions * tiling_.lanes),
        chunk_lanes_(round_up(tiling_.chunk, terms.tiles.lanes)) {
    this->plan_tasks(std::min(tiling_.panel, tiling_.lanes),
                     "few channels, contiguous: windows of all phases are added up");
  }

  Buffers<Terms> buffers(Carver& carver) const {
    return {carver.take<T>(tiling_.gathered ? tiling_.positions * tiling_.terms + 1 : 0),
            carver.take<const T*>(tiling_.positions),
            carver.take<Sum>(tiling_.slots * column_numel_),
            carver.take<Sum>(tiling_.piece * tiling_.chunk + terms_.tiles.lanes),
            carver.take<LineCache::Slot>(tiling_.slots),
            carver.take<FoldSource<Sum>>(tiling_.kernel_rows * (tiling_.reach + 1))};
  }

  void share(Carver& carver) {
    packed_ = carver.take<T>(problem_.geometry.kernel[0] * tiling_.terms * tiling_.lanes);
    start_ = carver.take<Sum>(chunk_lanes_);
  }

  void fill(const Call&) {
    pack_weight<Terms>(problem_, tiling_, packed_);
    for (int64_t e = 0; e < chunk_lanes_; ++e)
      start_[e] =
          problem_.bias ? static_cast<Sum>(reinterpret_cast<const From*>(problem_.bias)[e % tiling_.rows]) : Sum{};
  }

  void run_task(const Call&, int64_t task, const Buffers<Terms>& own) const {
    const TileScope<T> scope(terms_.tiles);
    LineCache cache(own.slots, tiling_.slots);
    this->for_rows(task, [&](const OverlapAddRows::Row& row) {
      const int64_t sources = multiply(row, cache, own);
      overlap_add_of(terms_.tiles)({own.sources, sources, tiling_.lanes, start_, own.sums, tiling_.chunk, row.chunks});
      store(row, own.sums);
    });
  }

 private:
  // The columns that a row of grad_input is summed from, as far as they are not there; lists them.
  int64_t multiply(const OverlapAddRows::Row& row, LineCache& cache, const Buffers<Terms>& own) const {
    int64_t sources = 0;
    tiling_.for_each_source(
        row, problem_.geometry, problem_.grad_output.layout, cache,
        [&](int64_t block, int64_t slot, int64_t offset) {
          multiply_row<Terms>(terms_, problem_, tiling_,
                              reinterpret_cast<const From*>(problem_.grad_output.data) + offset,
                              row.first - tiling_.reach, packed_ + block * tiling_.terms * tiling_.lanes, own,
                              own.columns + slot * column_numel_);
        },
        [&](int64_t t, int64_t slot) {
          const Sum* const columns = own.columns + slot * column_numel_ + t % tiling_.block_rows * tiling_.window;
          for (int64_t u = 0; u <= tiling_.reach; ++u)
            own.sources[sources++] = {columns + (tiling_.reach - u) * tiling_.lanes + u * tiling_.chunk,
                                      std::min(tiling_.chunk, tiling_.window - u * tiling_.chunk)};
        });
    return sources;
  }

  // Writes the pixels of a row that are in the image.
  void store(const OverlapAddRows::Row& row, const Sum* sums) const {
    const Geometry<3>& geometry = problem_.geometry;
    const int64_t pixel = row.first * geometry.stride[2] - geometry.padding_low[2];
    const int64_t from = std::max<int64_t>(0, -pixel);
    const int64_t to = std::min(row.chunks * geometry.stride[2], geometry.image[2] - pixel);
    if (from >= to) return;
    terms_.pack.store(sums + from * tiling_.rows,
                      reinterpret_cast<From*>(problem_.grad_input.data) +
                          tiling_.offset_of(row, pixel + from, problem_.grad_input.layout),
                      1, (to - from) * tiling_.rows);
  }

  const int64_t column_numel_, chunk_lanes_;
  // What all tasks read: the weight, and what sums begin with.
  T* packed_ = nullptr;
  Sum* start_ = nullptr;
};

}  // namespace

const char* decline_channels(const OneImage<InputGrad<3>>& problem) {
  if (const char* reason = decline_overlap_add(*problem)) return reason;
  const PlaneLayout<3>&input = problem->grad_input.layout, &output = problem->grad_output.layout;
  const Geometry<3>& geometry = problem->geometry;
  const int64_t rows = input.count[2];
  if (rows * geometry.stride[2] < kLeastChunk) return "input channels times stride are fewer than 4";
  if (geometry.dilation[2] > 1) return "taps of a dilated window are not contiguous";
  if (geometry.positions[2] < kLeastPositions) return "rows of fewer than 6 positions do not fill a tile";
  if (output.stride[2] != 1 || (rows > 1 && input.stride[2] != 1) || input.axis_stride[2] != rows)
    return "channels are not contiguous, or pixels of grad_input are apart";
  return nullptr;
}

const char* plan_channels(const InputGrad<3>& problem, const Call&, JobSlot& slot) {
  with_terms(problem.grad_input.dtype,
             [&](const auto& terms) { slot.emplace<ChannelsJob<std::decay_t<decltype(terms)>>>(terms, problem); });
  return nullptr;
}

}  // namespace unfoldconv::cpu::input_grad
