// The correlation engine for short sums or few rows of weights, over channels that adjoin in memory
// (correlate_engines.h).
//
// A row of a patch, all taps along the last axis and all channels of each, is then one strip of memory. A task owns
// some rows of the output. It copies the rows of the image that they read into cache, with zeros for the border, from
// where the kernel multiplies strips in place: nothing is gathered per position. Output channels are in the lanes, and
// results are written as they are to lie; the weight is packed as [panel of rows][row of the kernel][tap and
// channel][row]. Fewer rows than make a panel have neighbouring terms in the lanes instead, and the weight as lines.
#include "cpu/correlate/correlate_engines.h"
#include "cpu/shared/image_lines.h"
#include "cpu/shared/terms.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {
namespace {

// With more channels than these a row of the image has to be long: another engine fills tiles across rows.
constexpr int64_t kFewChannels = 7, kMostChannels = 256;
constexpr int64_t kLeastPositions = 12, kLongRow = 64;
constexpr int64_t kLeastDotTerms = 24;  // of a strip; shorter ones leave too many lanes empty
// Sums of several blocks are left to tiles, which take a chunk of them at a time, unless the weight stays in cache; and
// those of one channel to lines.
constexpr int64_t kLongSumBytes = 128 * 1024;
constexpr int64_t kMostPositions = 256;  // of a row that are computed at a time
// Where tiles multiply many terms at a time, longer sums are theirs.
constexpr int64_t kShortSum = 64;

template <class T, class From>
const StripTiles<T, From>& strip_tiles() {
  const TileKernels& tiles = kernels().tiles;
  if constexpr (std::is_same_v<T, Pair>)
    return tiles.bf16_strips;
  else if constexpr (std::is_same_v<T, double>)
    return tiles.f64_strips;
  else if constexpr (std::is_same_v<From, BFloat16>)
    return tiles.bf16_as_f32_strips;
  else if constexpr (std::is_same_v<From, Half>)
    return tiles.f16_as_f32_strips;
  else
    return tiles.f32_strips;
}

// Rows of the image in cache: what the positions of a piece read, from the first tap of the first position on.
template <int Rank>
struct ImageRows : RowPieces<Rank> {
  using RowPieces<Rank>::last;
  int64_t numel;  // of a row, in elements

  ImageRows(const Geometry<Rank>& geometry, int64_t batch, int64_t channels)
      : RowPieces<Rank>(geometry, batch, kMostPositions, 1) {
    numel = length(this->piece, geometry) * channels + 1;  // pack.line fills up the last Pair
    numel = round_up(numel, kAlignment);
  }

  // Pixels that so many positions read.
  static int64_t length(int64_t positions, const Geometry<Rank>& geometry) {
    return (positions - 1) * geometry.stride[last] + geometry.kernel[last];
  }

  // Channels adjoin, or there is one: they come all at once.
  template <class Terms, class Element>
  void fill(const Terms& terms, const Geometry<Rank>& geometry, const PlaneLayout<Rank>& image,
            const typename Terms::From* row, int64_t /*first_channel*/, int64_t channels,
            const PositionPiece<Rank>& piece, Element* to) const {
    const int64_t first = piece.index[last] * geometry.stride[last] - geometry.padding_low[last];
    const int64_t count = length(piece.length, geometry);
    const int64_t begin = std::clamp<int64_t>(-first, 0, count);
    const int64_t end = std::clamp<int64_t>(geometry.image[last] - first, begin, count);
    std::fill(to, to + begin * channels, Element{});
    const int64_t step = channels == 1 ? image.axis_stride[last] : 1;
    if (begin < end)
      terms.pack.line(row + (first + begin) * image.axis_stride[last], step,
                      reinterpret_cast<typename Terms::T*>(to + begin * channels), (end - begin) * channels);
    std::fill(to + end * channels, to + count * channels, Element{});
  }
};

template <class Terms>
struct Buffers {
  using Element = typename Terms::Element;
  Element* rows;
  LineCache::Slot* slots;
  int64_t* sets;          // of each row of the kernel
  const Element** strip;  // where each row of the first patch begins, or null beyond the border
  // For dots: as many runs as strips, where each begins at each position, [strips, positions], and the sums of a piece.
  Run<typename Terms::T>* runs;
  const typename Terms::T** run_rows;
  typename Terms::Sum* sums;
};

// The weight of a panel of rows as [row of the kernel][term][lane], 0 beyond the last row and element.
template <class Terms, int Rank>
void pack_panel(const Planes<Rank>& weight, const Geometry<Rank>& geometry, int64_t group, int64_t first, int64_t rows,
                int64_t width, typename Terms::Element* to) {
  using From = typename Terms::From;
  const auto& layout = weight.layout;
  constexpr int64_t halves = Terms::kHalves;
  const int64_t channels = layout.count[2], taps = geometry.kernel[Rank - 1], length = taps * channels;
  for (int64_t strip = 0; strip < geometry.tap_numel() / taps; ++strip)
    for (int64_t k = 0; k < round_up(length, halves); ++k) {
      int64_t index[Rank],
          offset = group * layout.stride[0] + first * layout.stride[1] + k % channels * layout.stride[2];
      unravel<Rank>(strip * taps + k / channels % taps, geometry.kernel, index);
      for (int axis = 0; axis < Rank; ++axis) offset += index[axis] * layout.axis_stride[axis];
      const From* const from = reinterpret_cast<const From*>(weight.data) + offset;
      auto* const row = to + (strip * round_up(length, halves) + k / halves * halves) * width + k % halves;
      for (int64_t lane = 0; lane < width; ++lane) {
        typename Terms::Element value{};
        if (lane < rows && k < length) {
          if constexpr (halves == 2)
            std::memcpy(&value, from + lane * layout.stride[1], sizeof value);
          else
            value = static_cast<typename Terms::T>(from[lane * layout.stride[1]]);
        }
        row[lane * halves] = value;
      }
    }
}

// The weight of the rows of a group as lines [row][row of the kernel][tap and channel].
template <class Terms, int Rank>
void pack_lines(const Terms& terms, const Planes<Rank>& weight, const Geometry<Rank>& geometry, int64_t group,
                typename Terms::T* to) {
  using From = typename Terms::From;
  const auto& layout = weight.layout;
  const int64_t channels = layout.count[2];
  auto* elements = reinterpret_cast<typename Terms::Element*>(to);
  for (int64_t row = 0; row < layout.count[1]; ++row)
    for (int64_t tap = 0; tap < geometry.tap_numel(); ++tap, elements += channels) {
      int64_t index[Rank], offset = group * layout.stride[0] + row * layout.stride[1];
      unravel<Rank>(tap, geometry.kernel, index);
      for (int axis = 0; axis < Rank; ++axis) offset += index[axis] * layout.axis_stride[axis];
      terms.pack.line(reinterpret_cast<const From*>(weight.data) + offset, layout.stride[2],
                      reinterpret_cast<typename Terms::T*>(elements), channels);  // the last Pair is overwritten
    }
}

template <class Terms, int Rank>
bool run(const Terms& terms, const Correlation<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;
  const StripTiles<T, From>& tiles = strip_tiles<T, From>();
  if (tiles.vectors == 0) return false;
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>&image = problem.image.layout, &output = problem.output.layout;
  const int64_t groups = problem.groups(), rows = problem.rows(), channels = problem.channels();
  const ImageRows<Rank> image_rows(geometry, problem.batch(), channels);
  const int64_t strips = image_rows.kernel_rows, length = image_rows.taps * channels;
  const int64_t strip_terms = Terms::count(length), term_count = strips * strip_terms;
  const bool dots = rows <= kDotColumns, long_sum = term_count > kBlockTerms<T>;
  if (dots) {
    if (terms.tiles.dots[0] == nullptr || length % Terms::kHalves != 0 || length < kLeastDotTerms) return false;
    if (geometry.positions[Rank - 1] < kLeastPositions || geometry.tap_numel() == 1) return false;
  } else {
    if (geometry.positions[Rank - 1] < (channels > kFewChannels ? kLongRow : kLeastPositions)) return false;
    const int64_t weight_bytes = term_count * round_up(rows, tiles.lanes) * static_cast<int64_t>(sizeof(T));
    if (long_sum && (weight_bytes > kLongSumBytes || geometry.tap_numel() == 1 || channels == 1)) return false;
    if (terms.tiles.depth > 1 && (channels > kFewChannels || term_count > kShortSum)) return false;
  }
  const int64_t padded_rows = dots ? rows : round_up(rows, tiles.lanes);
  // Panels of as many vectors each as can be.
  const int64_t vectors = ceil_div(rows, tiles.lanes), panels = ceil_div(vectors, tiles.vectors);
  const int64_t panel_rows = ceil_div(vectors, panels) * tiles.lanes;

  const auto carve = [&](Carver& carver) {
    return Buffers<Terms>{carver.take<Element>(strips * image_rows.numel),
                          carver.take<LineCache::Slot>(strips),
                          carver.take<int64_t>(strips),
                          carver.take<const Element*>(strips),
                          carver.take<Run<T>>(dots ? strips : 0),
                          carver.take<const T*>(dots ? strips * image_rows.piece : 0),
                          carver.take<Sum>(dots ? image_rows.piece * rows : 0)};
  };
  Carver count;
  carve(count);
  if (count.bytes() > workspace_limit().cpu) return false;

  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<T>(groups * term_count * padded_rows + 1),  // pack.line fills up the last Pair
                           carver.take<Sum>(groups * padded_rows), carver.take<Tap<Rank>>(geometry.tap_numel()));
  };
  Carver shared_count;
  carve_shared(shared_count);
  const int64_t split = ceil_div(image_rows.pieces, std::min(image_rows.pieces, kTasksPerProblem));
  const int64_t splits = ceil_div(image_rows.pieces, split), tasks = groups * splits;
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine("", tasks, count.bytes(), shared_count.bytes(),
                   "channels adjoin in memory, few rows or short sums: rows of patches are multiplied where they lie");
    return true;
  }
  const Scratch shared(shared_count.bytes(), *problem.like);
  Carver shared_carver(shared.data_ptr());
  const auto [packed, bias, tap_list] = carve_shared(shared_carver);
  for (int64_t group = 0; group < groups; ++group) {
    if (dots) pack_lines(terms, problem.weight, geometry, group, packed + group * rows * term_count);
    for (int64_t row = 0; row < (dots ? 0 : rows); row += panel_rows)
      pack_panel<Terms, Rank>(problem.weight, geometry, group, row, std::min(panel_rows, rows - row),
                              std::min(panel_rows, padded_rows - row),
                              reinterpret_cast<Element*>(packed + (group * padded_rows + row) * term_count));
  }
  if (problem.bias)
    widen_bias<Terms>(problem.bias, groups, 1, rows, padded_rows, bias);
  else
    std::fill_n(bias, groups * padded_rows, Sum{});
  list_taps<Rank>(geometry, image.axis_stride, tap_list);

  const bool serial =
      2. * problem.batch() * geometry.position_numel() * groups * rows * channels * geometry.tap_numel() < kSerialFlops;
  run_tasks(tasks, serial, *problem.like, carve, [&](int64_t task, const auto& buffers) {
    const int64_t group = task / splits, first = task % splits * split;
    const int64_t end = std::min(image_rows.pieces, first + split);
    const From* const plane = reinterpret_cast<const From*>(problem.image.data) + group * image.stride[1];
    From* const result = reinterpret_cast<From*>(problem.output.data) + group * output.stride[1];
    LineCache cache(buffers.slots, strips);
    for (int64_t index = first; index < end; ++index) {
      const PositionPiece<Rank> piece = image_rows.at(index, geometry);
      fetch_lines(terms, image_rows, geometry, image, plane, channels, tap_list, &piece, 1, cache, buffers.rows,
                  buffers.sets);
      for (int64_t i = 0; i < strips; ++i)
        buffers.strip[i] = buffers.sets[i] < 0 ? nullptr : buffers.rows + buffers.sets[i] * image_rows.numel;
      From* const to = result + offset_of<Rank>(piece, output);
      const int64_t step = geometry.stride[Rank - 1] * channels, to_step = output.axis_stride[Rank - 1];
      if (dots) {
        Run<T>* next = buffers.runs;
        for (int64_t i = 0; i < strips; ++i) {
          if (buffers.strip[i] == nullptr) continue;
          const T** const run_rows = buffers.run_rows + i * image_rows.piece;
          for (int64_t j = 0; j < piece.length; ++j)
            run_rows[j] = reinterpret_cast<const T*>(buffers.strip[i] + j * step);
          *next++ = {run_rows, i * strip_terms, strip_terms, false};
        }
        terms.dots(rows)({buffers.runs, next - buffers.runs, 0, packed + group * rows * term_count, 1, term_count,
                          buffers.sums, rows, Start::lane_bias, bias + group * rows},
                         static_cast<int>(piece.length));
        if (to_step == rows)
          terms.pack.store(buffers.sums, to, 1, piece.length * rows);
        else
          for (int64_t j = 0; j < piece.length; ++j)
            terms.pack.store(buffers.sums + j * rows, to + j * to_step, output.stride[2], rows);
        continue;
      }
      for (int64_t row = 0; row < rows; row += panel_rows) {
        const int64_t width = std::min(panel_rows, padded_rows - row), panel = group * padded_rows + row;
        tiles.tile[width / tiles.lanes - 1]({buffers.strip, strips, length, step, packed + panel * term_count,
                                             bias + panel, to + row, to_step, piece.length,
                                             static_cast<int>(std::min(width, rows - row))});
      }
    }
  });
  return true;
}

}  // namespace

bool correlate_strips(const Correlation<3>& problem) {
  const Geometry<3>& geometry = problem.geometry;
  const PlaneLayout<3>&image = problem.image.layout, &output = problem.output.layout;
  const int64_t channels = problem.channels();
  if (problem.variants() > 1 || channels > kMostChannels) return false;
  if (geometry.dilation[2] != 1 && geometry.kernel[2] > 1) return false;
  if (channels > 1 && (image.stride[2] != 1 || image.axis_stride[2] != channels)) return false;
  if (output.stride[2] != 1 && problem.rows() > 1) return false;
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
