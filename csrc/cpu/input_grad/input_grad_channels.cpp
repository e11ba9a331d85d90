// The input gradient of few channels that adjoin in memory, as those of grad_output do (input_grad_engines.h).
//
// Columns have (tap, channel) in the lanes: a pixel of grad_output is multiplied where it lies. The channels and taps
// of a row of a window are neighbours in them, as in grad_input, so that windows are added up by vectors.
#include "cpu/input_grad/input_grad_engines.h"
#include "cpu/input_grad/input_grad_rows.h"
#include "cpu/shared/terms.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kMostChunks = 256;    // of a row that are computed at a time
constexpr int64_t kLeastPositions = 6;  // of a row; fewer do not fill a tile
constexpr int64_t kLeastChunk = 4;      // elements; shorter ones leave too many lanes empty when windows are added up

// How a problem is cut up.
template <int Rank>
struct Plan : FoldedRows<Rank> {
  using FoldedRows<Rank>::last;
  int64_t channels, rows;
  int64_t window, chunk;        // elements of a row of a window, and of a chunk
  int64_t terms, lanes, panel;  // of a sum, of the columns of a block, of a panel of them
  bool gathered;                // grad_output has to be widened, or its pairs filled up

  template <class Terms>
  Plan(const Terms& kind, const InputGrad<Rank>& problem)
      : FoldedRows<Rank>(problem.geometry, problem.grad_input.layout.count[0], kMostChunks) {
    channels = problem.grad_output.layout.count[2];
    rows = problem.grad_input.layout.count[2];
    window = problem.geometry.kernel[last] * rows;
    chunk = problem.geometry.stride[last] * rows;
    terms = Terms::count(channels);
    lanes = kind.width(this->block_rows * window);
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
template <class Terms, int Rank>
void pack_weight(const InputGrad<Rank>& problem, const Plan<Rank>& plan, typename Terms::T* packed) {
  using From = typename Terms::From;
  constexpr int64_t halves = Terms::kHalves;
  const int64_t block_columns = plan.block_rows * plan.window;
  auto* to = reinterpret_cast<typename Terms::Element*>(packed);
  for (int64_t block = 0; block < problem.geometry.kernel[0]; ++block, to += plan.terms * halves * plan.lanes)
    for (int64_t lane = 0; lane < plan.lanes; ++lane) {
      const int64_t first = lane / plan.panel * plan.panel, width = std::min(plan.panel, plan.lanes - first);
      const int64_t column = block * block_columns + lane;
      const bool any = lane < block_columns;
      const int64_t offset = any ? weight_offset(problem, column / plan.rows, column % plan.rows) : 0;
      for (int64_t m = 0; m < plan.terms * halves; ++m) {
        typename Terms::Element value{};
        if (any && m < plan.channels) {
          const From* const from =
              reinterpret_cast<const From*>(problem.weight.data) + offset + m * problem.weight.layout.stride[2];
          if constexpr (halves == 2)
            std::memcpy(&value, from, sizeof value);
          else
            value = static_cast<typename Terms::T>(*from);
        }
        to[(plan.terms * first + m / halves * width + lane - first) * halves + m % halves] = value;
      }
    }
}

// The columns of the positions [first, first + plan.positions) of a row of grad_output, 0 at those that it lacks.
template <class Terms, int Rank>
void multiply_row(const Terms& terms, const InputGrad<Rank>& problem, const Plan<Rank>& plan,
                  const typename Terms::From* row, int64_t first, const typename Terms::T* packed,
                  const Buffers<Terms>& buffers, typename Terms::Sum* columns) {
  using T = typename Terms::T;
  constexpr int last = Rank - 1;
  const int64_t step = problem.grad_output.layout.axis_stride[last];
  const int64_t begin = std::clamp<int64_t>(-first, 0, plan.positions);
  const int64_t end = std::clamp<int64_t>(problem.geometry.positions[last] - first, begin, plan.positions);
  std::fill(columns, columns + begin * plan.lanes, typename Terms::Sum{});
  std::fill(columns + end * plan.lanes, columns + plan.positions * plan.lanes, typename Terms::Sum{});
  for (int64_t i = begin; i < end; ++i) {
    const auto* const from = row + (first + i) * step;
    if (plan.gathered) {
      T* const line = buffers.lines + i * plan.terms;
      terms.pack.line(from, 1, line, plan.channels);
      buffers.from[i] = line;
    } else {
      buffers.from[i] = reinterpret_cast<const T*>(from);
    }
  }
  for (int64_t lane = 0; lane < plan.lanes; lane += plan.panel) {
    const int64_t width = std::min(plan.panel, plan.lanes - lane);
    for (int64_t i = begin; i < end; i += terms.tiles.rows) {
      const Run<T> line{buffers.from + i, 0, plan.terms, true};
      terms.multiply(width, std::min<int64_t>(terms.tiles.rows, end - i),
                     {&line, 1, 0, packed + plan.terms * lane, 0, width, columns + i * plan.lanes + lane, plan.lanes,
                      Start::zero, nullptr});
    }
  }
}

template <class Terms, int Rank>
bool run(const Terms& terms, const InputGrad<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  constexpr int last = Rank - 1;
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>&input = problem.grad_input.layout, &output = problem.grad_output.layout;
  const Plan<Rank> plan(terms, problem);
  const int64_t column_numel = plan.positions * plan.lanes;
  const auto carve = [&](Carver& carver) {
    return Buffers<Terms>{carver.take<T>(plan.gathered ? plan.positions * plan.terms + 1 : 0),
                          carver.take<const T*>(plan.positions),
                          carver.take<Sum>(plan.slots * column_numel),
                          carver.take<Sum>(plan.piece * plan.chunk + terms.tiles.lanes),
                          carver.take<LineCache::Slot>(plan.slots),
                          carver.take<FoldSource<Sum>>(plan.kernel_rows * (plan.reach + 1))};
  };
  Carver count;
  carve(count);
  if (count.bytes() > workspace_limit().cpu) return false;

  const int64_t chunk_lanes = round_up(plan.chunk, terms.tiles.lanes);
  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<T>(geometry.kernel[0] * plan.terms * plan.lanes), carver.take<Sum>(chunk_lanes));
  };
  Carver shared_count;
  carve_shared(shared_count);
  const int64_t split = plan.rows_of_task(geometry), tasks = ceil_div(plan.row_count, split);
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine(terms.tile_name(std::min(plan.panel, plan.lanes)), tasks, count.bytes(), shared_count.bytes(),
                   "few channels that adjoin in memory: windows of all phases are added up");
    return true;
  }
  const Scratch shared(shared_count.bytes(), *problem.like);
  Carver shared_carver(shared.data_ptr());
  const auto [packed, start] = carve_shared(shared_carver);
  pack_weight<Terms, Rank>(problem, plan, packed);
  for (int64_t e = 0; e < chunk_lanes; ++e)
    start[e] = problem.bias ? static_cast<Sum>(reinterpret_cast<const From*>(problem.bias)[e % plan.rows]) : Sum{};

  const bool serial =
      2. * output.count[0] * geometry.position_numel() * plan.channels * plan.rows * geometry.tap_numel() <
      kSerialFlops;
  run_tasks(tasks, serial, *problem.like, carve, [&](int64_t task, const auto& buffers) {
    const TileScope<T> scope(terms.tiles);
    LineCache cache(buffers.slots, plan.slots);
    for (int64_t index = task * split, end = std::min(plan.row_count, index + split); index < end; ++index) {
      const auto row = plan.row(index, geometry);
      int64_t sources = 0;
      plan.for_each_source(
          row, geometry, output, cache,
          [&](int64_t block, int64_t slot, int64_t offset) {
            multiply_row<Terms, Rank>(terms, problem, plan,
                                      reinterpret_cast<const From*>(problem.grad_output.data) + offset,
                                      row.first - plan.reach, packed + block * plan.terms * plan.lanes, buffers,
                                      buffers.columns + slot * column_numel);
          },
          [&](int64_t t, int64_t slot) {
            const Sum* const columns = buffers.columns + slot * column_numel + t % plan.block_rows * plan.window;
            for (int64_t u = 0; u <= plan.reach; ++u)
              buffers.sources[sources++] = {columns + (plan.reach - u) * plan.lanes + u * plan.chunk,
                                            std::min(plan.chunk, plan.window - u * plan.chunk)};
          });
      fold_of(terms.tiles)({buffers.sources, sources, plan.lanes, start, buffers.sums, plan.chunk, row.chunks});
      From* const target = reinterpret_cast<From*>(problem.grad_input.data);
      // The pixels of the row that are in the image.
      const int64_t pixel = row.first * geometry.stride[last] - geometry.padding_low[last];
      const int64_t from = std::max<int64_t>(0, -pixel);
      const int64_t to = std::min(row.chunks * geometry.stride[last], geometry.image[last] - pixel);
      if (from < to)
        terms.pack.store(buffers.sums + from * plan.rows, target + plan.offset_of(row, pixel + from, input), 1,
                         (to - from) * plan.rows);
    }
  });
  return true;
}

}  // namespace

bool fold_channels(const InputGrad<3>& problem) {
  const PlaneLayout<3>&input = problem.grad_input.layout, &output = problem.grad_output.layout;
  const Geometry<3>& geometry = problem.geometry;
  const int64_t rows = input.count[2];
  if (rows * geometry.stride[2] < kLeastChunk || geometry.dilation[2] > 1) return false;
  if (geometry.positions[2] < kLeastPositions) return false;
  if (output.stride[2] != 1 || (rows > 1 && input.stride[2] != 1) || input.axis_stride[2] != rows) return false;
  bool done = false;
  with_terms(problem.grad_input.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
