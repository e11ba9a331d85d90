// The input gradient of few channels where positions adjoin in memory (input_grad_engines.h).
//
// Columns have positions in the lanes and (tap, channel) as rows: of grad_output a panel [output channels, positions]
// is copied for all of them. Windows are added up as shifted rows, one phase of a chunk after the other.
#include "cpu/input_grad/input_grad_rows.h"
#include "cpu/shared/terms.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kMostChunks = 512;     // of a row that are computed at a time
constexpr int64_t kLeastChannels = 8;    // fewer are not worth columns
constexpr int64_t kLeastPositions = 24;  // of a row; fewer leave too many lanes empty
constexpr int64_t kLeastColumns = 6;     // fewer are not worth a panel

template <int Rank>
struct Plan : FoldedRows<Rank> {
  using FoldedRows<Rank>::last;
  int64_t channels, rows;
  int64_t columns;  // of a block
  int64_t pitch;    // of columns: positions, filled up to whole vectors

  template <class Terms>
  Plan(const Terms& kind, const InputGrad<Rank>& problem)
      : FoldedRows<Rank>(problem.geometry, problem.grad_input.layout.count[0], kMostChunks) {
    channels = problem.grad_output.layout.count[2];
    rows = problem.grad_input.layout.count[2];
    columns = this->block_rows * problem.geometry.kernel[last] * rows;
    pitch = kind.width(this->positions);
  }
};

template <class T>
struct Buffers {
  T *panel, *columns, *sums;  // [channels, lanes of a tile], [slots, columns, pitch], [piece]
  LineCache::Slot* slots;
  const T** tap_rows;  // the columns of each row of the kernel that reaches a row
  FoldSource<T>* sources;
};

// The columns of positions [first, first + plan.pitch) of a row of grad_output, 0 at those that it lacks.
template <class Terms, int Rank>
void multiply_row(const Terms& terms, const InputGrad<Rank>& problem, const Plan<Rank>& plan,
                  const typename Terms::From* row, int64_t first, const typename Terms::T* const* weight,
                  typename Terms::T* panel, typename Terms::T* columns) {
  using T = typename Terms::T;
  constexpr int last = Rank - 1;
  const PlaneLayout<Rank>& layout = problem.grad_output.layout;
  for (int64_t lane = 0; lane < plan.pitch; lane += terms.most_lanes()) {
    const int64_t width = std::min(terms.most_lanes(), plan.pitch - lane);
    const int64_t begin = std::clamp<int64_t>(-(first + lane), 0, width);
    const int64_t end = std::clamp<int64_t>(problem.geometry.positions[last] - (first + lane), begin, width);
    for (int64_t m = 0; m < plan.channels; ++m) {
      T* const to = panel + m * width;
      std::fill(to, to + begin, T{});
      if (begin < end)
        terms.pack.line(row + m * layout.stride[2] + (first + lane + begin) * layout.axis_stride[last],
                        layout.axis_stride[last], to + begin, end - begin);
      std::fill(to + end, to + width, T{});
    }
    for (int64_t i = 0; i < plan.columns; i += terms.tiles.rows) {
      const Run<T> line{weight + i, 0, plan.channels, true};
      terms.multiply(width, std::min<int64_t>(terms.tiles.rows, plan.columns - i),
                     {&line, 1, 0, panel, 0, width, columns + i * plan.pitch + lane, plan.pitch, Start::zero, nullptr});
    }
  }
}

template <class Terms, int Rank>
bool run(const Terms& terms, const InputGrad<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  constexpr int last = Rank - 1;
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>&input = problem.grad_input.layout, &output = problem.grad_output.layout;
  const Plan<Rank> plan(terms, problem);
  const int64_t taps = geometry.kernel[last], stride = geometry.stride[last];
  const auto carve = [&](Carver& carver) {
    return Buffers<T>{carver.take<T>(plan.channels * terms.most_lanes()),
                      carver.take<T>(plan.slots * plan.columns * plan.pitch),
                      carver.take<T>(plan.piece + terms.tiles.lanes),
                      carver.take<LineCache::Slot>(plan.slots),
                      carver.take<const T*>(plan.slots),
                      carver.take<FoldSource<T>>(plan.slots * taps)};
  };
  Carver count;
  carve(count);
  if (count.bytes() > workspace_limit().cpu) return false;

  // The weight as [tap, channel][output channel], and where each of these rows begins; the bias as it is added.
  const int64_t columns = geometry.tap_numel() * plan.rows, bias_pitch = round_up(plan.piece, terms.tiles.lanes);
  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<T>(columns * plan.channels), carver.take<const T*>(columns),
                           carver.take<T>(plan.rows * bias_pitch));
  };
  Carver shared_count;
  carve_shared(shared_count);
  const int64_t split = plan.rows_of_task(geometry), tasks = ceil_div(plan.row_count, split);
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine(terms.tile_name(std::min(terms.most_lanes(), plan.pitch)), tasks, count.bytes(),
                   shared_count.bytes(), "few channels: one product for all taps, whose windows are added up");
    return true;
  }
  const Scratch shared(shared_count.bytes(), *problem.like);
  Carver shared_carver(shared.data_ptr());
  const auto [packed, weight, bias] = carve_shared(shared_carver);
  for (int64_t column = 0; column < columns; ++column) {
    const From* const from = reinterpret_cast<const From*>(problem.weight.data) +
                             weight_offset(problem, column / plan.rows, column % plan.rows);
    weight[column] = packed + column * plan.channels;
    for (int64_t m = 0; m < plan.channels; ++m)
      packed[column * plan.channels + m] = static_cast<T>(from[m * problem.weight.layout.stride[2]]);
  }
  for (int64_t c = 0; c < plan.rows; ++c)
    std::fill_n(bias + c * bias_pitch, bias_pitch,
                problem.bias ? static_cast<T>(reinterpret_cast<const From*>(problem.bias)[c]) : T{});

  const bool serial = 2. * output.count[0] * geometry.position_numel() * plan.channels * columns < kSerialFlops;
  run_tasks(tasks, serial, *problem.like, carve, [&](int64_t task, const auto& buffers) {
    LineCache cache(buffers.slots, plan.slots);
    for (int64_t index = task * split, end = std::min(plan.row_count, index + split); index < end; ++index) {
      const auto row = plan.row(index, geometry);
      int64_t found = 0;
      plan.for_each_source(
          row, geometry, output, cache,
          [&](int64_t block, int64_t slot, int64_t offset) {
            multiply_row<Terms, Rank>(terms, problem, plan,
                                      reinterpret_cast<const From*>(problem.grad_output.data) + offset,
                                      row.first - plan.reach, weight + block * plan.columns, buffers.panel,
                                      buffers.columns + slot * plan.columns * plan.pitch);
          },
          [&](int64_t t, int64_t slot) {
            buffers.tap_rows[found++] =
                buffers.columns + (slot * plan.columns + t % plan.block_rows * taps * plan.rows) * plan.pitch;
          });
      for (int64_t c = 0; c < plan.rows; ++c)
        for (int64_t phase = 0; phase < stride; ++phase)
          plan.for_pixels(row, geometry, input, phase, [&](int64_t first, int64_t pixels, int64_t offset) {
            int64_t sources = 0;
            for (int64_t i = 0; i < found; ++i)
              for (int64_t u = 0; u < taps; ++u)
                if (u * geometry.dilation[last] % stride == phase)
                  buffers.sources[sources++] = {buffers.tap_rows[i] + (u * plan.rows + c) * plan.pitch + plan.reach -
                                                    u * geometry.dilation[last] / stride + first,
                                                pixels};
            fold_of(terms.tiles)({buffers.sources, sources, 0, bias + c * bias_pitch, buffers.sums, pixels, 1});
            terms.pack.store(buffers.sums,
                             reinterpret_cast<From*>(problem.grad_input.data) + offset + c * input.stride[2],
                             stride * input.axis_stride[last], pixels);
          });
    }
  });
  return true;
}

}  // namespace

bool fold_planes(const InputGrad<3>& problem) {
  const PlaneLayout<3>&input = problem.grad_input.layout, &output = problem.grad_output.layout;
  const Geometry<3>& geometry = problem.geometry;
  const int64_t columns = geometry.tap_numel() / geometry.kernel[0] * input.count[2];
  if (output.count[2] < kLeastChannels || columns < kLeastColumns) return false;
  if (geometry.positions[2] < kLeastPositions) return false;
  if (output.axis_stride[2] != 1 || input.axis_stride[2] != 1) return false;
  bool done = false;
  with_wide_terms(problem.grad_input.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
