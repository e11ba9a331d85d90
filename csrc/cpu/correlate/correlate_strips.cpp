// The correlation engine for short sums or few rows of weights, over channels that are neighbours in memory
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

namespace unfoldconv::cpu {
namespace {

// With more channels than these a row of the image has to be long: another engine fills tiles across rows.
constexpr int64_t kFewStripChannels = 7, kMostStripChannels = 256;
constexpr int64_t kLeastPositions = 12, kLongRow = 64;
constexpr int64_t kLeastDotTerms = 24;  // of a strip; shorter ones leave too many lanes empty
// Sums of several blocks are left to tiles, which take a chunk of them at a time, unless the weight stays in cache; and
// those of one channel to lines.
constexpr int64_t kLongSumBytes = 128 * 1024;
constexpr int64_t kMostPositions = 256;  // of a row that are computed at a time
// Where tiles multiply many terms at a time, longer sums are theirs.
constexpr int64_t kShortTileSum = 64;  // terms

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

  // Channels are neighbours in memory, or there is one: they come all at once.
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

template <class Terms>
class StripsJob final : public TaskJob<StripsJob<Terms>> {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;

 public:
  StripsJob(const Terms& terms, const Correlation<3>& problem)
      : terms_(terms),
        tiles_(strip_tiles<T, From>()),
        problem_(problem),
        rows_(problem.rows()),
        image_rows_(problem.geometry, problem.batch(), problem.channels()),
        strips_(image_rows_.kernel_rows),
        length_(image_rows_.taps * problem.channels()),
        strip_terms_(Terms::count(length_)),
        dots_(rows_ <= kDotColumns),
        padded_rows_(dots_ ? rows_ : round_up(rows_, tiles_.lanes)) {
    // Panels of as many vectors each as can be.
    const int64_t vectors = ceil_div(rows_, tiles_.lanes), panels = ceil_div(vectors, tiles_.vectors);
    panel_rows_ = ceil_div(vectors, panels) * tiles_.lanes;
    split_ = ceil_div(image_rows_.pieces, std::min(image_rows_.pieces, kTasksPerProblem));
    splits_ = ceil_div(image_rows_.pieces, split_);

    Plan& plan = this->plan_;
    plan.why = "few rows or short sums: rows of patches are neighbours in memory, and multiplied where they lie";
    plan.tasks = problem.groups() * splits_;
    plan.serial = problem.flops() < kSerialFlops;
    this->measure();
  }

  Buffers<Terms> buffers(Carver& carver) const {
    return {carver.take<Element>(strips_ * image_rows_.numel),
            carver.take<LineCache::Slot>(strips_),
            carver.take<int64_t>(strips_),
            carver.take<const Element*>(strips_),
            carver.take<Run<T>>(dots_ ? strips_ : 0),
            carver.take<const T*>(dots_ ? strips_ * image_rows_.piece : 0),
            carver.take<Sum>(dots_ ? image_rows_.piece * rows_ : 0)};
  }

  void share(Carver& carver) {
    packed_ = carver.take<T>(problem_.groups() * term_count() * padded_rows_ + 1);  // pack.line fills up the last Pair
    bias_ = carver.take<Sum>(problem_.groups() * padded_rows_);
    taps_ = carver.take<Tap<3>>(problem_.geometry.tap_numel());
  }

  void fill(const Call&) {
    const int64_t groups = problem_.groups();
    for (int64_t group = 0; group < groups; ++group) {
      if (dots_) pack_lines(terms_, problem_.weight, problem_.geometry, group, packed_ + group * rows_ * term_count());
      for (int64_t row = 0; row < (dots_ ? 0 : rows_); row += panel_rows_)
        pack_panel<Terms, 3>(problem_.weight, problem_.geometry, group, row, std::min(panel_rows_, rows_ - row),
                             std::min(panel_rows_, padded_rows_ - row),
                             reinterpret_cast<Element*>(packed_ + (group * padded_rows_ + row) * term_count()));
    }
    if (problem_.bias)
      widen_bias<Terms>(problem_.bias, groups, 1, rows_, padded_rows_, bias_);
    else
      std::fill_n(bias_, groups * padded_rows_, Sum{});
    list_taps<3>(problem_.geometry, problem_.image.layout.axis_stride, taps_);
  }

  void run_task(const Call&, int64_t task, const Buffers<Terms>& own) const {
    const PlaneLayout<3>&image = problem_.image.layout, &output = problem_.output.layout;
    const int64_t group = task / splits_, first = task % splits_ * split_;
    const From* const plane = reinterpret_cast<const From*>(problem_.image.data) + group * image.stride[1];
    From* const result = reinterpret_cast<From*>(problem_.output.data) + group * output.stride[1];
    LineCache cache(own.slots, strips_);
    for (int64_t index = first, end = std::min(image_rows_.pieces, first + split_); index < end; ++index) {
      const PositionPiece<3> piece = image_rows_.at(index, problem_.geometry);
      fetch_lines(terms_, image_rows_, problem_.geometry, image, plane, problem_.channels(), taps_, &piece, 1, cache,
                  own.rows, own.sets);
      for (int64_t i = 0; i < strips_; ++i)
        own.strip[i] = own.sets[i] < 0 ? nullptr : own.rows + own.sets[i] * image_rows_.numel;
      From* const to = result + offset_of<3>(piece, output);
      if (dots_)
        multiply_dots(group, piece, own, to);
      else
        multiply_tiles(group, piece, own, to);
    }
  }

 private:
  int64_t term_count() const { return strips_ * strip_terms_; }
  int64_t step() const { return problem_.geometry.stride[2] * problem_.channels(); }  // from one strip to the next

  // Neighbouring terms are in the lanes.
  void multiply_dots(int64_t group, const PositionPiece<3>& piece, const Buffers<Terms>& own, From* to) const {
    Run<T>* next = own.runs;
    for (int64_t i = 0; i < strips_; ++i) {
      if (own.strip[i] == nullptr) continue;
      const T** const run_rows = own.run_rows + i * image_rows_.piece;
      for (int64_t j = 0; j < piece.length; ++j) run_rows[j] = reinterpret_cast<const T*>(own.strip[i] + j * step());
      *next++ = {run_rows, i * strip_terms_, strip_terms_, false};
    }
    terms_.dots(rows_)({own.runs, next - own.runs, 0, packed_ + group * rows_ * term_count(), 1, term_count(), own.sums,
                        rows_, Start::lane_bias, bias_ + group * rows_},
                       static_cast<int>(piece.length));
    const PlaneLayout<3>& output = problem_.output.layout;
    const int64_t to_step = output.axis_stride[2];
    if (to_step == rows_)
      terms_.pack.store(own.sums, to, 1, piece.length * rows_);
    else
      for (int64_t j = 0; j < piece.length; ++j)
        terms_.pack.store(own.sums + j * rows_, to + j * to_step, output.stride[2], rows_);
  }

  // Output channels are in the lanes.
  void multiply_tiles(int64_t group, const PositionPiece<3>& piece, const Buffers<Terms>& own, From* to) const {
    for (int64_t row = 0; row < rows_; row += panel_rows_) {
      const int64_t width = std::min(panel_rows_, padded_rows_ - row), panel = group * padded_rows_ + row;
      tiles_.tile[width / tiles_.lanes - 1]({own.strip, strips_, length_, step(), packed_ + panel * term_count(),
                                             bias_ + panel, to + row, problem_.output.layout.axis_stride[2],
                                             piece.length, static_cast<int>(std::min(width, rows_ - row))});
    }
  }

  const Terms terms_;
  const StripTiles<T, From>& tiles_;
  const Correlation<3>& problem_;
  const int64_t rows_;
  const ImageRows<3> image_rows_;
  const int64_t strips_, length_, strip_terms_;  // of a patch; elements and terms of one
  const bool dots_;
  const int64_t padded_rows_;
  int64_t panel_rows_;
  int64_t split_, splits_;  // pieces of a task, and tasks of a group
  // What all tasks read.
  T* packed_ = nullptr;
  Sum* bias_ = nullptr;
  Tap<3>* taps_ = nullptr;
};

// What depends on the terms.
template <class Terms>
const char* decline_terms(const Terms& terms, const Correlation<3>& problem) {
  using T = typename Terms::T;
  const StripTiles<T, typename Terms::From>& tiles = strip_tiles<T, typename Terms::From>();
  if (tiles.vectors == 0) return "the instruction set has no kernel for strips of this dtype";
  const Geometry<3>& geometry = problem.geometry;
  const int64_t rows = problem.rows(), channels = problem.channels();
  const int64_t length = geometry.kernel[2] * channels, positions = geometry.positions[2];
  const int64_t term_count = geometry.tap_numel() / geometry.kernel[2] * Terms::count(length);
  if (rows <= kDotColumns) {
    if (terms.tiles.dots[0] == nullptr || length % Terms::kHalves != 0 || length < kLeastDotTerms)
      return "few rows, but the strips are too short to have their terms in the lanes";
    if (positions < kLeastPositions) return "rows of fewer than 12 positions do not repay a copy of the image's rows";
    return geometry.tap_numel() == 1 ? "a single tap reads no element twice" : nullptr;
  }
  if (positions < (channels > kFewStripChannels ? kLongRow : kLeastPositions))
    return "rows of so few positions (12, with more than 7 channels 64) leave tiles too short";
  const int64_t weight_bytes = term_count * round_up(rows, tiles.lanes) * static_cast<int64_t>(sizeof(T));
  if (term_count > kBlockTerms<T> && (weight_bytes > kLongSumBytes || geometry.tap_numel() == 1 || channels == 1))
    return "long sums, and a weight that does not stay in cache, a single tap, or a single channel";
  if (terms.tiles.depth > 1 && (channels > kFewStripChannels || term_count > kShortTileSum))
    return "tiles that multiply many terms at a time suit sums of more than 64 terms";
  return nullptr;
}

}  // namespace

const char* decline_strips(const OneImage<Correlation<3>>& problem) {
  const Geometry<3>& geometry = problem->geometry;
  const PlaneLayout<3>&image = problem->image.layout, &output = problem->output.layout;
  const int64_t channels = problem->channels();
  if (problem->variants() > 1) return "outputs that share their columns are multiplied from a panel";
  if (channels > kMostStripChannels) return "more than 256 channels: other engines fill tiles across rows";
  if (geometry.dilation[2] != 1 && geometry.kernel[2] > 1) return "dilated taps are not neighbours in memory";
  if (channels > 1 && (image.stride[2] != 1 || image.axis_stride[2] != channels))
    return "channels and pixels of the image are not neighbours in memory";
  if (output.stride[2] != 1 && problem->rows() > 1) return "channels of the output are not neighbours in memory";
  const char* reason = kNoTerms;
  with_terms(problem->image.dtype, [&](const auto& terms) { reason = decline_terms(terms, *problem); });
  return reason;
}

const char* plan_strips(const Correlation<3>& problem, const Call&, JobSlot& slot) {
  with_terms(problem.image.dtype,
             [&](const auto& terms) { slot.emplace<StripsJob<std::decay_t<decltype(terms)>>>(terms, problem); });
  return nullptr;
}

}  // namespace unfoldconv::cpu
