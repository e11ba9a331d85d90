// The input gradient of few channels that adjoin in memory, as are those of grad_output (channels_last).
//
//   columns[o, (t, u, c)] = sum over output channels m of grad_output[o, m] * weight[m, c, t, u]
//   grad_input[i, x, c]   = bias[c] + sum over o, t with o * stride + t * dilation - padding = i, and over q, u with
//                           q * stride + u - padding = x, of columns[(o, q), (t, u, c)]
//
// u being the tap along the last axis. All phases (phases.h) share one product, in whose columns the few channels of
// all taps fill the lanes of vectors. The columns of a row of grad_output stay in cache until each row of grad_input
// that they belong to is summed; there the channels and taps of a window are neighbours again, so that windows are
// added up by vectors. A task owns some rows of grad_input, and computes the columns that it needs itself.
#include "folded_input_grad.h"

#include "../workspace.h"
#include "correlation_types.h"
#include "image_lines.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kMostChunks = 256;  // positions of a piece of a row
constexpr int64_t kLeastChunk = 4;    // shorter ones leave too many lanes empty when windows are added up

const Fold<float>& fold_of(const Tiles<float>&) { return kernels().tiles.f32_fold; }
const Fold<float>& fold_of(const Tiles<Pair>&) { return kernels().tiles.f32_fold; }
const Fold<double>& fold_of(const Tiles<double>&) { return kernels().tiles.f64_fold; }

// How a problem is cut up. A chunk is what the windows of one position after the other are apart: `stride` pixels.
template <int Rank>
struct Plan {
  static constexpr int last = Rank - 1;
  int64_t channels, rows, kernel_rows;
  int64_t window, chunk, overlap;  // elements of a row of a window, and of a chunk; chunks that a window reaches
  int64_t chunks, piece, pieces;   // of a row of grad_input, of a piece of it
  int64_t terms, lanes, panel;     // of a sum, of all columns, of a panel of them
  int64_t positions, slots;        // of the columns of a piece, and rows of grad_output that a row needs at a time
  bool gathered;                   // grad_output has to be widened, or its pairs filled up
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

template <class Terms, int Rank>
Plan<Rank> plan_of(const Terms& terms, const InputGrad<Rank>& problem) {
  constexpr int last = Rank - 1;
  const Geometry<Rank>& geometry = problem.geometry;
  Plan<Rank> plan;
  plan.channels = problem.grad_output.layout.count[2];
  plan.rows = problem.grad_input.layout.count[2];
  plan.kernel_rows = geometry.tap_numel() / geometry.kernel[last];
  plan.window = geometry.kernel[last] * plan.rows;
  plan.chunk = geometry.stride[last] * plan.rows;
  plan.overlap = ceil_div(plan.window, plan.chunk);
  plan.chunks = ceil_div(geometry.image[last] + geometry.padding_low[last], geometry.stride[last]);
  plan.pieces = ceil_div(plan.chunks, kMostChunks);
  plan.piece = ceil_div(plan.chunks, plan.pieces);
  plan.terms = Terms::count(plan.channels);
  plan.lanes = terms.width(plan.kernel_rows * plan.window);
  plan.panel = terms.width(ceil_div(plan.lanes, ceil_div(plan.lanes, terms.most_lanes())));
  plan.positions = plan.piece + plan.overlap - 1;
  plan.slots = 1;
  for (int axis = 0; axis < last; ++axis)
    plan.slots *= ceil_div(geometry.kernel[axis],
                           geometry.stride[axis] / std::gcd(geometry.stride[axis], geometry.dilation[axis]));
  plan.gathered = (!std::is_same_v<typename Terms::T, typename Terms::From> && Terms::kHalves == 1) ||
                  plan.channels % Terms::kHalves != 0;
  return plan;
}

// The weight as [panel][term][lane], 0 beyond the last lane.
template <class Terms, int Rank>
void pack_weight(const InputGrad<Rank>& problem, const Plan<Rank>& plan, typename Terms::T* packed) {
  using From = typename Terms::From;
  const auto& layout = problem.weight.layout;
  constexpr int64_t halves = Terms::kHalves;
  auto* const to = reinterpret_cast<typename Terms::Element*>(packed);
  for (int64_t lane = 0; lane < plan.lanes; ++lane) {
    const int64_t first = lane / plan.panel * plan.panel, width = std::min(plan.panel, plan.lanes - first);
    int64_t index[Rank], offset = lane % plan.rows * layout.stride[1];
    unravel<Rank>(lane / plan.rows, problem.geometry.kernel, index);
    for (int axis = 0; axis < Rank; ++axis) offset += index[axis] * layout.axis_stride[axis];
    for (int64_t m = 0; m < plan.terms * halves; ++m) {
      typename Terms::Element value{};
      if (lane < plan.kernel_rows * plan.window && m < plan.channels) {
        const From* const from = reinterpret_cast<const From*>(problem.weight.data) + offset + m * layout.stride[2];
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
  const Plan<Rank> plan = plan_of(terms, problem);
  const int64_t column_numel = plan.positions * plan.lanes;
  const auto carve = [&](Carver& carver) {
    return Buffers<Terms>{carver.take<T>(plan.gathered ? plan.positions * plan.terms + 1 : 0),
                          carver.take<const T*>(plan.positions),
                          carver.take<Sum>(plan.slots * column_numel),
                          carver.take<Sum>(plan.piece * plan.chunk + terms.tiles.lanes),
                          carver.take<LineCache::Slot>(plan.slots),
                          carver.take<FoldSource<Sum>>(plan.kernel_rows * plan.overlap)};
  };
  Carver count;
  carve(count);
  if (count.bytes() > workspace_limit().cpu) return false;

  const int64_t chunk_lanes = round_up(plan.chunk, terms.tiles.lanes);
  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<T>(plan.terms * plan.lanes), carver.take<Sum>(chunk_lanes));
  };
  Carver shared_count;
  carve_shared(shared_count);
  int64_t rows = problem.grad_input.layout.count[0] * plan.pieces;
  for (int axis = 0; axis < last; ++axis) rows *= geometry.image[axis];
  const int64_t split = std::max(geometry.kernel[last - 1], ceil_div(rows, kTasksPerProblem)),
                tasks = ceil_div(rows, split);
  if (Report* const report = Report::wanted()) {
    report->engine(Engine::channels, terms.tile_name(std::min(plan.panel, plan.lanes)), tasks, count.bytes(),
                   shared_count.bytes(), "few channels that adjoin in memory: windows of all phases are added up");
    return true;
  }
  const Tensor shared = allocate_bytes(shared_count.bytes(), problem.like);
  Carver shared_carver(shared);
  const auto [packed, start] = carve_shared(shared_carver);
  pack_weight<Terms, Rank>(problem, plan, packed);
  for (int64_t e = 0; e < chunk_lanes; ++e)
    start[e] = problem.bias ? static_cast<Sum>(reinterpret_cast<const From*>(problem.bias)[e % plan.rows]) : Sum{};

  const bool serial =
      2. * output.count[0] * geometry.position_numel() * plan.channels * plan.rows * geometry.tap_numel() <
      kSerialFlops;
  run_tasks(tasks, serial, problem.like, carve, [&](int64_t task, const auto& buffers) {
    const TileScope<T> scope(terms.tiles);
    LineCache cache(buffers.slots, plan.slots);
    for (int64_t index = task * split, end = std::min(rows, index + split); index < end; ++index) {
      // Rows follow each other along the axis before the last, so that they share rows of grad_output.
      int64_t at[Rank + 1], rest = index;
      at[last] = rest % geometry.image[last - 1], rest /= geometry.image[last - 1];
      const int64_t first = rest % plan.pieces * plan.piece;  // chunk
      rest /= plan.pieces;
      for (int axis = last - 2; axis >= 0; --axis)
        at[axis + 1] = rest % geometry.image[axis], rest /= geometry.image[axis];
      at[0] = rest;
      const int64_t piece = std::min(plan.piece, plan.chunks - first), first_position = first - (plan.overlap - 1);

      cache.begin();
      int64_t sources = 0;
      for (int pass = 0; pass < 2; ++pass)  // what is there already must not make room for what is not
        for (int64_t t = 0; t < plan.kernel_rows; ++t) {
          int64_t taps[Rank], row = at[0], offset = at[0] * output.stride[0];
          unravel<Rank>(t * geometry.kernel[last], geometry.kernel, taps);
          bool inside = true;
          for (int axis = 0; axis < last; ++axis) {
            const int64_t reached = at[axis + 1] + geometry.padding_low[axis] - taps[axis] * geometry.dilation[axis];
            const int64_t position = reached / geometry.stride[axis];
            inside &= reached >= 0 && reached % geometry.stride[axis] == 0 && position < geometry.positions[axis];
            row = row * geometry.positions[axis] + position;
            offset += position * output.axis_stride[axis];
          }
          if (!inside) continue;
          const int64_t key = row * plan.pieces + first / plan.piece;
          int64_t slot = cache.find(key);
          if (pass == 0) continue;
          if (slot < 0) {
            slot = cache.take(key);
            multiply_row<Terms, Rank>(terms, problem, plan,
                                      reinterpret_cast<const From*>(problem.grad_output.data) + offset, first_position,
                                      packed, buffers, buffers.columns + slot * column_numel);
          }
          for (int64_t u = 0; u < plan.overlap; ++u)
            buffers.sources[sources++] = {buffers.columns + slot * column_numel + (plan.overlap - 1 - u) * plan.lanes +
                                              t * plan.window + u * plan.chunk,
                                          std::min(plan.chunk, plan.window - u * plan.chunk)};
        }
      fold_of(terms.tiles)({buffers.sources, sources, plan.lanes, start, buffers.sums, plan.chunk, piece});

      // The pixels of the piece that are in the image.
      const int64_t pixel = first * geometry.stride[last] - geometry.padding_low[last];
      const int64_t from = std::max<int64_t>(0, -pixel);
      const int64_t to = std::min(piece * geometry.stride[last], geometry.image[last] - pixel);
      int64_t offset = at[0] * input.stride[0] + (pixel + from) * plan.rows;
      for (int axis = 0; axis < last; ++axis) offset += at[axis + 1] * input.axis_stride[axis];
      if (from < to)
        terms.pack.store(buffers.sums + from * plan.rows, reinterpret_cast<From*>(problem.grad_input.data) + offset, 1,
                         (to - from) * plan.rows);
    }
  });
  return true;
}

bool suits(const InputGrad<3>& problem) {
  const PlaneLayout<3>&input = problem.grad_input.layout, &output = problem.grad_output.layout;
  const Geometry<3>& geometry = problem.geometry;
  const int64_t rows = input.count[2];
  if (input.plane_numel() * geometry.image_numel() == 0) return false;
  if (input.count[1] > 1 || rows > kDotColumns || output.count[2] < 2) return false;
  if (rows * geometry.stride[2] < kLeastChunk || geometry.kernel[2] <= geometry.stride[2]) return false;
  // Columns are kept for rows along one axis alone.
  if (geometry.kernel[0] > 1 || geometry.dilation[2] > 1) return false;
  for (int axis = 0; axis < 3; ++axis)
    if (geometry.padding_low[axis] < 0) return false;
  return output.stride[2] == 1 && (rows == 1 || input.stride[2] == 1) && input.axis_stride[2] == rows;
}

}  // namespace

template <int Rank>
bool fold_input_grad(const InputGrad<Rank>& any_rank) {
  const InputGrad<3> problem{with_leading_axes<3>(any_rank.grad_output),
                             with_leading_axes<3>(any_rank.grad_input),
                             with_leading_axes<3>(any_rank.weight),
                             with_leading_axes<3>(any_rank.geometry),
                             any_rank.bias,
                             any_rank.like};
  if (!may_use(Engine::channels) || !suits(problem)) return false;
  bool done = false;
  with_terms(problem.grad_input.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

#define UNFOLDCONV_INSTANTIATE(RANK) template bool fold_input_grad<RANK>(const InputGrad<RANK>&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
