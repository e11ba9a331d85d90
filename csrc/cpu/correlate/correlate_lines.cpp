// The correlation engine for few channels, with positions in the lanes (correlate_engines.h).
//
// A task owns some rows of the output. It brings the rows of the image that they read into lines (image_lines.h), in
// which the terms of neighbouring positions are neighbours for every tap: they are multiplied where they lie, without
// gathering a panel. The weight is packed as [block of rows][term][row], a term being a tap of a channel, channels the
// faster.
#include "cpu/correlate/correlate_engines.h"
#include "cpu/shared/image_lines.h"
#include "cpu/shared/terms.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kMostChannels = 4;     // more are better multiplied from a panel
constexpr int64_t kShortSum = 32;        // longer ones another engine may suit better
constexpr int64_t kMostPositions = 240;  // of a row that are computed at a time
constexpr int64_t kLeastPositions = 24;  // fewer leave too many lanes empty

const LineTiles<float>& line_tiles(const Tiles<float>&) { return kernels().tiles.f32_lines; }
const LineTiles<double>& line_tiles(const Tiles<double>&) { return kernels().tiles.f64_lines; }
const PackKernels<float, float>& same_type(const Tiles<float>&) { return kernels().pack.f32; }
const PackKernels<double, double>& same_type(const Tiles<double>&) { return kernels().pack.f64; }

template <class T>
struct Buffers {
  T *lines, *zeros;
  T *sums, *transposed;  // [rows, positions], [positions, rows]
  LineCache::Slot* slots;
  int64_t* sets;    // of each row of the kernel
  const T** terms;  // where the lanes of each begin
};

// The weight as [group][block of rows][term][row], 0 beyond the last row.
template <class Terms, int Rank>
void pack_weight(const Correlation<Rank>& problem, int64_t block_rows, typename Terms::T* to) {
  using From = typename Terms::From;
  const Planes<Rank>& weight = problem.weight;
  const int64_t rows = problem.rows(), channels = problem.channels(), taps = problem.geometry.tap_numel();
  for (int64_t group = 0; group < problem.groups(); ++group)
    for (int64_t first = 0; first < rows; first += block_rows)
      for (int64_t tap = 0; tap < taps; ++tap) {
        int64_t index[Rank], offset = group * weight.layout.stride[0];
        unravel<Rank>(tap, problem.geometry.kernel, index);
        for (int axis = 0; axis < Rank; ++axis) offset += index[axis] * weight.layout.axis_stride[axis];
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t row = first; row < first + block_rows; ++row)
            *to++ = row < rows ? static_cast<typename Terms::T>(reinterpret_cast<const From*>(
                                     weight.data)[offset + row * weight.layout.stride[1] + c * weight.layout.stride[2]])
                               : typename Terms::T{};
      }
}

template <class Terms>
class LinesJob final : public TaskJob<LinesJob<Terms>> {
  using T = typename Terms::T;
  using From = typename Terms::From;

 public:
  LinesJob(const Terms& terms, const Correlation<3>& problem)
      : terms_(terms),
        tiles_(line_tiles(terms.tiles)),
        problem_(problem),
        term_count_(problem.geometry.tap_numel() * problem.channels()),
        padded_rows_(round_up(problem.rows(), tiles_.rows)),
        // Channels of the result are neighbours in memory: they are brought there by vectors.
        transposed_(problem.output.layout.stride[2] == 1 && problem.rows() > 1),
        lines_(problem.geometry, problem.batch(), kMostPositions, 1) {
    // Tiles read whole vectors: what lies behind the last position is computed, but not stored.
    padded_ = round_up(lines_.piece, tiles_.lanes);
    lines_.pitch += padded_ - lines_.piece;
    lines_.set_channels(problem.channels(), 1);
    split_ = ceil_div(lines_.pieces, std::min(lines_.pieces, kTasksPerProblem));
    splits_ = ceil_div(lines_.pieces, split_);

    Plan& plan = this->plan_;
    plan.why = "few channels: rows of the image are brought into lines, which all taps read";
    plan.tile_rows = tiles_.rows;
    plan.tile_lanes = tiles_.lanes * kLineVectors;
    plan.tasks = problem.groups() * splits_;
    plan.serial = problem.flops() < kSerialFlops;
    this->measure();
  }

  Buffers<T> buffers(Carver& carver) const {
    const bool transposed_apart = transposed_ && !std::is_same_v<T, From>;
    return {carver.take<T>(lines_.kernel_rows * lines_.numel),
            carver.take<T>(padded_),
            carver.take<T>(padded_rows_ * padded_),
            carver.take<T>(transposed_apart ? lines_.piece * problem_.rows() : 0),
            carver.take<LineCache::Slot>(lines_.kernel_rows),
            carver.take<int64_t>(lines_.kernel_rows),
            carver.take<const T*>(term_count_)};
  }

  void share(Carver& carver) {
    packed_ = carver.take<T>(problem_.groups() * term_count_ * padded_rows_);
    bias_ = carver.take<T>(problem_.groups() * padded_rows_);
    taps_ = carver.take<Tap<3>>(problem_.geometry.tap_numel());
    line_taps_ = carver.take<LineTap>(lines_.taps);
  }

  void fill(const Call&) {
    pack_weight<Terms, 3>(problem_, tiles_.rows, packed_);
    if (problem_.bias)
      widen_bias<Terms>(problem_.bias, problem_.groups(), 1, problem_.rows(), padded_rows_, bias_);
    else
      std::fill_n(bias_, problem_.groups() * padded_rows_, T{});
    list_taps<3>(problem_.geometry, problem_.image.layout.axis_stride, taps_);
    for (int64_t i = 0; i < lines_.taps; ++i) line_taps_[i] = lines_.tap(i, problem_.geometry);
  }

  void run_task(const Call&, int64_t task, const Buffers<T>& own) const {
    const int64_t group = task / splits_, first = task % splits_ * split_;
    const PlaneLayout<3>&image = problem_.image.layout, &output = problem_.output.layout;
    const From* const plane = reinterpret_cast<const From*>(problem_.image.data) + group * image.stride[1];
    From* const result = reinterpret_cast<From*>(problem_.output.data) + group * output.stride[1];
    std::fill_n(own.zeros, padded_, T{});
    LineCache cache(own.slots, lines_.kernel_rows);
    for (int64_t index = first, end = std::min(lines_.pieces, first + split_); index < end; ++index) {
      const PositionPiece<3> piece = lines_.at(index, problem_.geometry);
      fetch_lines(terms_, lines_, problem_.geometry, image, plane, problem_.channels(), taps_, &piece, 1, cache,
                  own.lines, own.sets);
      multiply(group, piece, own);
      store(piece, own, result + offset_of<3>(piece, output));
    }
  }

 private:
  // sums[row, position] = bias[row] + the sum of weight[row, term] * lines[term, position] over all terms.
  void multiply(int64_t group, const PositionPiece<3>& piece, const Buffers<T>& own) const {
    const int64_t channels = problem_.channels();
    const T** next = own.terms;
    for (int64_t i = 0; i < lines_.kernel_rows; ++i)
      for (int64_t j = 0; j < lines_.taps; ++j) {
        const int64_t line = line_taps_[j].line * channels * lines_.pitch + line_taps_[j].start;
        const T* const from = own.sets[i] < 0 ? nullptr : own.lines + own.sets[i] * lines_.numel + line;
        for (int64_t c = 0; c < channels; ++c) *next++ = from ? from + c * lines_.pitch : own.zeros;
      }
    for (int64_t row = 0; row < problem_.rows(); row += tiles_.rows)
      for (int64_t term = 0; term < term_count_; term += kBlockTerms<T>) {
        LineTileArguments<T> arguments{packed_ + (group * padded_rows_ + row) * term_count_ + term * tiles_.rows,
                                       own.terms + term,
                                       std::min(kBlockTerms<T>, term_count_ - term),
                                       0,
                                       own.sums + row * padded_,
                                       padded_,
                                       term == 0 ? bias_ + group * padded_rows_ + row : nullptr};
        while (arguments.lane < piece.length) {
          const int64_t vectors =
              std::min<int64_t>(kLineVectors, ceil_div(piece.length - arguments.lane, tiles_.lanes));
          tiles_.tile[vectors - 1](arguments);
          arguments.lane += vectors * tiles_.lanes;
        }
      }
  }

  void store(const PositionPiece<3>& piece, const Buffers<T>& own, From* to) const {
    const PlaneLayout<3>& output = problem_.output.layout;
    const int64_t rows = problem_.rows(), step = output.axis_stride[2];
    if (!transposed_) {
      for (int64_t row = 0; row < rows; ++row)
        terms_.pack.store(own.sums + row * padded_, to + row * output.stride[2], step, piece.length);
      return;
    }
    const TransposeArguments<T> arguments{own.sums, padded_, 1, rows, piece.length, rows};
    if constexpr (std::is_same_v<T, From>) {
      same_type(terms_.tiles).transpose(arguments, to, step);
    } else {
      same_type(terms_.tiles).transpose(arguments, own.transposed, rows);
      if (step == rows)
        terms_.pack.store(own.transposed, to, 1, rows * piece.length);
      else
        for (int64_t i = 0; i < piece.length; ++i) terms_.pack.store(own.transposed + i * rows, to + i * step, 1, rows);
    }
  }

  const Terms terms_;
  const LineTiles<T>& tiles_;
  const Correlation<3>& problem_;
  const int64_t term_count_, padded_rows_;
  const bool transposed_;
  LinePlan<3> lines_;
  int64_t padded_;          // positions of a piece, in whole vectors
  int64_t split_, splits_;  // pieces of a task, and tasks of a group
  // What all tasks read.
  T *packed_ = nullptr, *bias_ = nullptr;
  Tap<3>* taps_ = nullptr;
  LineTap* line_taps_ = nullptr;
};

}  // namespace

const char* decline_lines(const OneImage<Correlation<3>>& problem) {
  const Geometry<3>& geometry = problem->geometry;
  const int64_t channels = problem->channels(), sum = channels * geometry.tap_numel();
  if (!has_terms(problem->image.dtype)) return kNoTerms;
  if (problem->variants() > 1) return "outputs that share their columns are multiplied from a panel";
  if (channels > kMostChannels) return "more than 4 channels are better multiplied from a panel";
  if (geometry.positions[2] < kLeastPositions) return "rows of fewer than 24 positions leave too many lanes empty";
  if (geometry.kernel[2] <= geometry.stride[2]) return "no two taps read the same element, so a line saves nothing";
  // Where channels of the result are neighbours in memory, engines with channels in the lanes suit longer sums, if
  // channels of the image do so as well, or if they multiply two terms at a time.
  const bool paired = problem->image.dtype == ScalarType::BFloat16 && kernels().tiles.bf16.vectors > 0;
  if (problem->output.layout.stride[2] == 1 && (channels > 1 || paired) && sum > kShortSum)
    return "channels are neighbours in memory, and sums of more than 32 terms suit other engines";
  return nullptr;
}

const char* plan_lines(const Correlation<3>& problem, const Call&, JobSlot& slot) {
  with_wide_terms(problem.image.dtype,
                  [&](const auto& terms) { slot.emplace<LinesJob<std::decay_t<decltype(terms)>>>(terms, problem); });
  return nullptr;
}

}  // namespace unfoldconv::cpu
