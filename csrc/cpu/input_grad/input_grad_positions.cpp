// The input gradient of few channels where positions are contiguous (input_grad_engines.h).
//
// Columns have positions in the lanes and (tap, channel) as rows: of grad_output a panel [output channels, positions]
// is copied for all of them. Windows are added up as shifted rows, one phase of a chunk after the other.
#include "cpu/input_grad/input_grad_rows.h"
#include "cpu/shared/terms.h"

namespace unfoldconv::cpu::input_grad {
namespace {

constexpr int64_t kMostChunks = 512;     // of a row that are computed at a time
constexpr int64_t kLeastChannels = 8;    // fewer are not worth columns
constexpr int64_t kLeastPositions = 24;  // of a row; fewer leave too many lanes empty
constexpr int64_t kLeastColumns = 6;     // fewer are not worth a panel

struct Tiling : OverlapAddRows {
  int64_t channels, rows;
  int64_t columns;  // of a block
  int64_t pitch;    // of columns: positions, filled up to whole vectors

  template <class Terms>
  Tiling(const Terms& kind, const InputGrad<3>& problem)
      : OverlapAddRows(problem.geometry, problem.grad_input.layout.count[0], kMostChunks) {
    channels = problem.grad_output.layout.count[2];
    rows = problem.grad_input.layout.count[2];
    columns = block_rows * problem.geometry.kernel[2] * rows;
    pitch = kind.width(positions);
  }
};

template <class T>
struct Buffers {
  T *panel, *columns, *sums;  // [channels, lanes of a tile], [slots, columns, pitch], [piece]
  LineCache::Slot* slots;
  const T** tap_rows;  // the columns of each row of the kernel that reaches a row
  FoldSource<T>* sources;
};

// The columns of positions [first, first + tiling.pitch) of a row of grad_output, 0 at those that it lacks.
template <class Terms>
void multiply_row(const Terms& terms, const InputGrad<3>& problem, const Tiling& tiling,
                  const typename Terms::From* row, int64_t first, const typename Terms::T* const* weight,
                  typename Terms::T* panel, typename Terms::T* columns) {
  using T = typename Terms::T;
  const PlaneLayout<3>& layout = problem.grad_output.layout;
  for (int64_t lane = 0; lane < tiling.pitch; lane += terms.most_lanes()) {
    const int64_t width = std::min(terms.most_lanes(), tiling.pitch - lane);
    const int64_t begin = std::clamp<int64_t>(-(first + lane), 0, width);
    const int64_t end = std::clamp<int64_t>(problem.geometry.positions[2] - (first + lane), begin, width);
    for (int64_t m = 0; m < tiling.channels; ++m) {
      T* const to = panel + m * width;
      std::fill(to, to + begin, T{});
      if (begin < end)
        terms.pack.line(row + m * layout.stride[2] + (first + lane + begin) * layout.axis_stride[2],
                        layout.axis_stride[2], to + begin, end - begin);
      std::fill(to + end, to + width, T{});
    }
    for (int64_t i = 0; i < tiling.columns; i += terms.tiles.rows) {
      const Run<T> line{weight + i, 0, tiling.channels, true};
      terms.multiply(
          width, std::min<int64_t>(terms.tiles.rows, tiling.columns - i),
          {&line, 1, 0, panel, 0, width, columns + i * tiling.pitch + lane, tiling.pitch, Start::zero, nullptr});
    }
  }
}

template <class Terms>
class PositionsJob final : public RowsJob<PositionsJob<Terms>, Terms, Tiling> {
  using Base = RowsJob<PositionsJob<Terms>, Terms, Tiling>;
  using Base::problem_;
  using Base::terms_;
  using Base::tiling_;
  using typename Base::From;
  using typename Base::T;

 public:
  PositionsJob(const Terms& terms, const InputGrad<3>& problem)
      : Base(terms, problem),
        columns_(problem.geometry.tap_numel() * tiling_.rows),
        bias_pitch_(round_up(tiling_.piece, terms.tiles.lanes)) {
    this->plan_tasks(std::min(terms.most_lanes(), tiling_.pitch),
                     "few channels: one product for all taps, whose windows are added up");
  }

  Buffers<T> buffers(Carver& carver) const {
    return {carver.take<T>(tiling_.channels * terms_.most_lanes()),
            carver.take<T>(tiling_.slots * tiling_.columns * tiling_.pitch),
            carver.take<T>(tiling_.piece + terms_.tiles.lanes),
            carver.take<LineCache::Slot>(tiling_.slots),
            carver.take<const T*>(tiling_.slots),
            carver.take<FoldSource<T>>(tiling_.slots * problem_.geometry.kernel[2])};
  }

  void share(Carver& carver) {
    packed_ = carver.take<T>(columns_ * tiling_.channels);
    weight_ = carver.take<const T*>(columns_);
    bias_ = carver.take<T>(tiling_.rows * bias_pitch_);
  }

  void fill(const Call&) {
    for (int64_t column = 0; column < columns_; ++column) {
      const From* const from = reinterpret_cast<const From*>(problem_.weight.data) +
                               weight_offset(problem_, column / tiling_.rows, column % tiling_.rows);
      T* const to = packed_ + column * tiling_.channels;
      weight_[column] = to;
      for (int64_t m = 0; m < tiling_.channels; ++m) to[m] = static_cast<T>(from[m * problem_.weight.layout.stride[2]]);
    }
    for (int64_t c = 0; c < tiling_.rows; ++c)
      std::fill_n(bias_ + c * bias_pitch_, bias_pitch_,
                  problem_.bias ? static_cast<T>(reinterpret_cast<const From*>(problem_.bias)[c]) : T{});
  }

  void run_task(const Call&, int64_t task, const Buffers<T>& own) const {
    LineCache cache(own.slots, tiling_.slots);
    this->for_rows(task, [&](const OverlapAddRows::Row& row) {
      const int64_t found = multiply(row, cache, own);
      for (int64_t c = 0; c < tiling_.rows; ++c)
        for (int64_t phase = 0; phase < problem_.geometry.stride[2]; ++phase) add_up(row, c, phase, found, own);
    });
  }

 private:
  // The columns that a row of grad_input is summed from, as far as they are not there; lists them by kernel row.
  int64_t multiply(const OverlapAddRows::Row& row, LineCache& cache, const Buffers<T>& own) const {
    int64_t found = 0;
    tiling_.for_each_source(
        row, problem_.geometry, problem_.grad_output.layout, cache,
        [&](int64_t block, int64_t slot, int64_t offset) {
          multiply_row<Terms>(terms_, problem_, tiling_,
                              reinterpret_cast<const From*>(problem_.grad_output.data) + offset,
                              row.first - tiling_.reach, weight_ + block * tiling_.columns, own.panel,
                              own.columns + slot * tiling_.columns * tiling_.pitch);
        },
        [&](int64_t t, int64_t slot) {
          const int64_t first = t % tiling_.block_rows * problem_.geometry.kernel[2] * tiling_.rows;
          own.tap_rows[found++] = own.columns + (slot * tiling_.columns + first) * tiling_.pitch;
        });
    return found;
  }

  // Adds up and writes the pixels of a row at one phase, of one channel.
  void add_up(const OverlapAddRows::Row& row, int64_t c, int64_t phase, int64_t found, const Buffers<T>& own) const {
    const Geometry<3>& geometry = problem_.geometry;
    const PlaneLayout<3>& input = problem_.grad_input.layout;
    const int64_t taps = geometry.kernel[2], stride = geometry.stride[2], dilation = geometry.dilation[2];
    tiling_.for_pixels(row, geometry, input, phase, [&](int64_t first, int64_t pixels, int64_t offset) {
      int64_t sources = 0;
      for (int64_t i = 0; i < found; ++i)
        for (int64_t u = 0; u < taps; ++u)
          if (u * dilation % stride == phase)
            own.sources[sources++] = {own.tap_rows[i] + (u * tiling_.rows + c) * tiling_.pitch + tiling_.reach -
                                          u * dilation / stride + first,
                                      pixels};
      overlap_add_of(terms_.tiles)({own.sources, sources, 0, bias_ + c * bias_pitch_, own.sums, pixels, 1});
      terms_.pack.store(own.sums, reinterpret_cast<From*>(problem_.grad_input.data) + offset + c * input.stride[2],
                        stride * input.axis_stride[2], pixels);
    });
  }

  const int64_t columns_, bias_pitch_;
  // What all tasks read: the weight as [tap, channel][output channel], where each of these rows begins, and the bias as
  // it is added.
  T* packed_ = nullptr;
  const T** weight_ = nullptr;
  T* bias_ = nullptr;
};

}  // namespace

const char* decline_positions(const OneImage<InputGrad<3>>& problem) {
  if (const char* reason = decline_overlap_add(*problem)) return reason;
  const PlaneLayout<3>&input = problem->grad_input.layout, &output = problem->grad_output.layout;
  const Geometry<3>& geometry = problem->geometry;
  const int64_t columns = geometry.tap_numel() / geometry.kernel[0] * input.count[2];
  if (output.count[2] < kLeastChannels) return "fewer than 8 output channels are not worth columns";
  if (columns < kLeastColumns) return "taps and input channels make fewer than 6 columns, not worth a panel";
  if (geometry.positions[2] < kLeastPositions) return "rows of fewer than 24 positions leave too many lanes empty";
  if (output.axis_stride[2] != 1 || input.axis_stride[2] != 1) return "positions or pixels are not contiguous";
  return nullptr;
}

const char* plan_positions(const InputGrad<3>& problem, const Call&, JobSlot& slot) {
  with_wide_terms(problem.grad_input.dtype, [&](const auto& terms) {
    slot.emplace<PositionsJob<std::decay_t<decltype(terms)>>>(terms, problem);
  });
  return nullptr;
}

}  // namespace unfoldconv::cpu::input_grad
