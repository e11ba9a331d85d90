// The correlation engine for few channels, with positions in the lanes (correlate_engines.h).
//
// A task owns some rows of the output. It brings the rows of the image that they read into lines (image_lines.h), in
// which the terms of neighbouring positions adjoin for every tap: they are multiplied where they lie, without gathering
// a panel. The weight is packed as [block of rows][term][row], a term being a tap of a channel, channels the faster.
#include "cpu/correlate/correlate_engines.h"
#include "cpu/shared/image_lines.h"
#include "cpu/shared/terms.h"
#include "runtime/workspace.h"

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
  T *sums, *turned;  // [rows, positions], [positions, rows]
  LineCache::Slot* slots;
  int64_t* sets;    // of each row of the kernel
  const T** terms;  // where the lanes of each begin
};

// The weight as [group][block of rows][term][row], 0 beyond the last row.
template <class Terms, int Rank>
void pack_weight(const Correlation<Rank>& problem, int64_t block_rows, typename Terms::T* to) {
  using From = typename Terms::From;
  const Planes<Rank>& weight = problem.weights[0];
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

template <class Terms, int Rank>
bool run(const Terms& terms, const Correlation<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  constexpr int last = Rank - 1;
  const LineTiles<T>& tiles = line_tiles(terms.tiles);
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>&image = problem.image.layout, &output = problem.outputs[0].layout;
  const int64_t groups = problem.groups(), rows = problem.rows(), channels = problem.channels();
  const int64_t taps = geometry.tap_numel(), term_count = taps * channels;
  const int64_t padded_rows = round_up(rows, tiles.rows);

  LinePlan<Rank> lines(geometry, problem.batch(), kMostPositions, 1);
  // Tiles read whole vectors: what lies behind the last position is computed, but not stored.
  const int64_t padded = round_up(lines.piece, tiles.lanes);
  lines.pitch += padded - lines.piece;
  lines.set_channels(channels, 1);
  // Neighbouring channels of the result adjoin: they are brought there by vectors.
  const bool turned = output.stride[2] == 1 && rows > 1;
  const bool turned_in_place = turned && std::is_same_v<T, From>;
  const auto carve = [&](Carver& carver) {
    return Buffers<T>{carver.take<T>(lines.kernel_rows * lines.numel),
                      carver.take<T>(padded),
                      carver.take<T>(padded_rows * padded),
                      carver.take<T>(turned && !turned_in_place ? lines.piece * rows : 0),
                      carver.take<LineCache::Slot>(lines.kernel_rows),
                      carver.take<int64_t>(lines.kernel_rows),
                      carver.take<const T*>(term_count)};
  };
  Carver count;
  carve(count);
  if (count.bytes() > workspace_limit().cpu) return false;

  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<T>(groups * term_count * padded_rows), carver.take<T>(groups * padded_rows),
                           carver.take<Tap<Rank>>(taps), carver.take<LineTap>(lines.taps));
  };
  Carver shared_count;
  carve_shared(shared_count);
  const int64_t split = ceil_div(lines.pieces, std::min(lines.pieces, kTasksPerProblem));
  const int64_t splits = ceil_div(lines.pieces, split), tasks = groups * splits;
  if (Report* const report = Report::wanted()) {
    report->engine(Engine::positions, std::to_string(tiles.rows) + "x" + std::to_string(tiles.lanes * kLineVectors),
                   tasks, count.bytes(), shared_count.bytes(),
                   "few channels: rows of the image are brought into lines, which all taps read");
    return true;
  }
  const Scratch shared(shared_count.bytes(), problem.like);
  Carver shared_carver(shared);
  const auto [packed, bias, tap_list, line_taps] = carve_shared(shared_carver);
  pack_weight<Terms, Rank>(problem, tiles.rows, packed);
  if (problem.bias)
    widen_bias<Terms>(problem.bias, groups, 1, rows, padded_rows, bias);
  else
    std::fill_n(bias, groups * padded_rows, T{});
  list_taps<Rank>(geometry, image.axis_stride, tap_list);
  for (int64_t i = 0; i < lines.taps; ++i) line_taps[i] = lines.tap(i, geometry);

  const bool serial = 2. * problem.batch() * geometry.position_numel() * groups * rows * term_count < kSerialFlops;
  run_tasks(tasks, serial, problem.like, carve, [&](int64_t task, const auto& buffers) {
    const int64_t group = task / splits, first = task % splits * split, end = std::min(lines.pieces, first + split);
    const From* const plane = reinterpret_cast<const From*>(problem.image.data) + group * image.stride[1];
    From* const result = reinterpret_cast<From*>(problem.outputs[0].data) + group * output.stride[1];
    std::fill_n(buffers.zeros, padded, T{});
    LineCache cache(buffers.slots, lines.kernel_rows);
    for (int64_t index = first; index < end; ++index) {
      const PositionPiece<Rank> piece = lines.at(index, geometry);
      fetch_lines(terms, lines, geometry, image, plane, channels, tap_list, &piece, 1, cache, buffers.lines,
                  buffers.sets);
      const T** next = buffers.terms;
      for (int64_t i = 0; i < lines.kernel_rows; ++i)
        for (int64_t j = 0; j < lines.taps; ++j) {
          const int64_t line = line_taps[j].line * channels * lines.pitch + line_taps[j].start;
          const T* const from = buffers.sets[i] < 0 ? nullptr : buffers.lines + buffers.sets[i] * lines.numel + line;
          for (int64_t c = 0; c < channels; ++c) *next++ = from ? from + c * lines.pitch : buffers.zeros;
        }
      for (int64_t row = 0; row < rows; row += tiles.rows)
        for (int64_t term = 0; term < term_count; term += kBlockTerms<T>) {
          LineTileArguments<T> arguments{packed + (group * padded_rows + row) * term_count + term * tiles.rows,
                                         buffers.terms + term,
                                         std::min(kBlockTerms<T>, term_count - term),
                                         0,
                                         buffers.sums + row * padded,
                                         padded,
                                         term == 0 ? bias + group * padded_rows + row : nullptr};
          while (arguments.lane < piece.length) {
            const int64_t vectors =
                std::min<int64_t>(kLineVectors, ceil_div(piece.length - arguments.lane, tiles.lanes));
            tiles.tile[vectors - 1](arguments);
            arguments.lane += vectors * tiles.lanes;
          }
        }
      From* const to = result + offset_of<Rank>(piece, output);
      const int64_t step = output.axis_stride[last];
      if (!turned) {
        for (int64_t row = 0; row < rows; ++row)
          terms.pack.store(buffers.sums + row * padded, to + row * output.stride[2], step, piece.length);
      } else {
        const TransposeArguments<T> arguments{buffers.sums, padded, 1, rows, piece.length, rows};
        if constexpr (std::is_same_v<T, From>) {
          same_type(terms.tiles).transpose(arguments, to, step);
        } else {
          same_type(terms.tiles).transpose(arguments, buffers.turned, rows);
          if (step == rows)
            terms.pack.store(buffers.turned, to, 1, rows * piece.length);
          else
            for (int64_t i = 0; i < piece.length; ++i)
              terms.pack.store(buffers.turned + i * rows, to + i * step, 1, rows);
        }
      }
    }
  });
  return true;
}

}  // namespace

bool correlate_lines(const Correlation<3>& problem) {
  const Geometry<3>& geometry = problem.geometry;
  const int64_t channels = problem.channels(), sum = channels * geometry.tap_numel();
  if (problem.variants() > 1 || channels > kMostChannels || geometry.positions[2] < kLeastPositions) return false;
  // Taps that read no element again gain nothing by a line.
  if (geometry.kernel[2] <= geometry.stride[2]) return false;
  // Where channels of the result adjoin, the other engine suits longer sums, if channels of the image do so as well, or
  // if it multiplies two terms at a time.
  const bool paired = problem.image.dtype == ScalarType::BFloat16 && kernels().tiles.bf16.vectors > 0;
  if (problem.outputs[0].layout.stride[2] == 1 && (channels > 1 || paired) && sum > kShortSum) return false;
  bool done = false;
  with_wide_terms(problem.image.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
