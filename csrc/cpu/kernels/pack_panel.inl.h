// The functions of pack_kernels.h that fill panels.
namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// --- panels ----------------------------------------------------------------------------------------------------------

// 16-bit floats as their bits, which are what is moved until they are widened.
UNFOLDCONV_INLINE const uint16_t* bits_of(const BFloat16* from) { return reinterpret_cast<const uint16_t*>(from); }
UNFOLDCONV_INLINE const uint16_t* bits_of(const Half* from) { return reinterpret_cast<const uint16_t*>(from); }

UNFOLDCONV_INLINE Vector<float> widen_bits(Vector<uint32_t> bits, BFloat16) { return (Vector<float>)(bits << 16); }
UNFOLDCONV_INLINE Vector<float> widen_bits(Vector<uint32_t> bits, Half) {
  const Halves narrow = truncate(bits);
  Half halves[kLanes<float>];
  __builtin_memcpy(halves, &narrow, sizeof narrow);
  return widen(halves);
}

// One vector of a panel, as it was in memory: floats, doubles, or 16 bits in 32.
template <class From>
struct Raw {
  using Lane = From;
  UNFOLDCONV_INLINE static const From* pointer(const From* from) { return from; }
};
template <>
struct Raw<BFloat16> {
  using Lane = uint32_t;
  UNFOLDCONV_INLINE static const uint16_t* pointer(const BFloat16* from) { return bits_of(from); }
};
template <>
struct Raw<Half> {
  using Lane = uint32_t;
  UNFOLDCONV_INLINE static const uint16_t* pointer(const Half* from) { return bits_of(from); }
};

template <class From>
UNFOLDCONV_INLINE auto gather_piece(const From* from, int64_t step, const Piece& piece) {
  using Lane = typename Raw<From>::Lane;
  const auto* source = Raw<From>::pointer(from) + piece.offset;
  if (step == 1) return load_lanes(source, piece.begin, piece.end);
  if constexpr (sizeof(From) <= 4) {
    if (step == 2) return load_even_lanes(source, piece.begin, piece.end);
#if UNFOLDCONV_VECTOR_BYTES == 64
    if (step > 0 && step <= kMostStep) return load_stepped_lanes(source, step, piece.begin, piece.end);
#endif
  }
  alignas(kVectorBytes) Lane lanes[kLanes<Lane>] = {};
  for (int lane = piece.begin; lane < piece.end; ++lane) lanes[lane] = source[lane * step];
  return load(lanes);
}

// All pieces of one vector.
template <class From>
UNFOLDCONV_INLINE auto gather_vector(const From* from, int64_t step, const Piece* pieces, int count) {
  using Lane = typename Raw<From>::Lane;
  if (count == 0) return Vector<Lane>{};
  auto result = gather_piece(from, step, pieces[0]);
  for (int i = 1; i < count; ++i) {  // the lanes of pieces are disjoint
    const auto next = gather_piece(from, step, pieces[i]);
    result = (Vector<Lane>)((Vector<uint32_t>)result | (Vector<uint32_t>)next);
  }
  return result;
}

// A vector of a panel is filled for the same tap of several channels at a time, so that what its pieces are is found
// out once: kChannels of them, whose rows of the image stay in the first-level cache over all taps.
constexpr int64_t kChannels = 8;

// put(i, vector) for i < count, where vector i holds the pieces of from + i * from_step.
template <class From, class Put>
UNFOLDCONV_INLINE void gather_vectors(const From* from, int64_t from_step, int64_t count, int64_t step,
                                      const Piece* pieces, int piece_count, const Put& put) {
  using Lane = typename Raw<From>::Lane;
  constexpr int lanes = kLanes<Lane>;
  if (piece_count == 0) {
    for (int64_t i = 0; i < count; ++i) put(i, Vector<Lane>{});
  } else if (piece_count == 1 && step == 1) {
    const auto* source = Raw<From>::pointer(from) + pieces[0].offset;
    const int begin = pieces[0].begin, end = pieces[0].end;
    if (begin == 0 && end == lanes)
      for (int64_t i = 0; i < count; ++i, source += from_step) put(i, load_lanes(source, 0, lanes));
    else
      for (int64_t i = 0; i < count; ++i, source += from_step) put(i, load_lanes(source, begin, end));
  } else if (piece_count == 2 && step == 1) {
    const auto* source = Raw<From>::pointer(from);
    const Piece a = pieces[0], b = pieces[1];
    for (int64_t i = 0; i < count; ++i, source += from_step)
      put(i, (Vector<Lane>)((Vector<uint32_t>)load_lanes(source + a.offset, a.begin, a.end) |
                            (Vector<uint32_t>)load_lanes(source + b.offset, b.begin, b.end)));
  } else {
    for (int64_t i = 0; i < count; ++i, from += from_step) put(i, gather_vector(from, step, pieces, piece_count));
  }
}

// Calls fill(element - first, channel, tap, channels) for the elements [first, first + count), where an element is tap
// `element % taps` of channel `element / taps`: for one element, or for the same tap of some neighbouring channels, all
// of whose taps are wanted.
template <class Fill>
UNFOLDCONV_INLINE void for_each_tap(int64_t taps, int64_t first, int64_t count, const Fill& fill) {
  for (int64_t element = first, end = first + count; element < end;) {
    int64_t channels = element % taps == 0 ? (end - element) / taps : 0;
    if (channels == 0) {
      fill(element - first, element / taps, element % taps, int64_t{1});
      ++element;
      continue;
    }
    channels = channels < kChannels ? channels : kChannels;
    for (int64_t tap = 0; tap < taps; ++tap) fill(element - first + tap, element / taps, tap, channels);
    element += channels * taps;
  }
}

template <class T, class From>
void pack_panel(const PanelArguments<From>& arguments, T* panel) {
  constexpr int lanes = kLanes<typename SumOf<T>::type>;
  const int64_t width = arguments.vectors * lanes, channel_stride = arguments.channel_stride, step = arguments.step;
  const auto* const taps = arguments.tap_pieces;
  const From* const from = arguments.from;
  if constexpr (__is_same(T, Pair)) {
    // Two elements make a term; with an odd number of taps the pairs of every second channel begin alike.
    const int64_t unit = arguments.taps % 2 ? 2 : 1, period = arguments.taps * unit;
    const int64_t elements = arguments.channels * arguments.taps;
    const int64_t end = arguments.first + arguments.count;
    for (int64_t term = arguments.first; term < end;) {
      int64_t periods = 2 * term % period == 0 ? (2 * end < elements ? 2 * end : elements) - 2 * term : 0;
      periods = periods < 0 ? 0 : periods / period;
      periods = periods < kChannels ? periods : kChannels;
      const int64_t terms = periods ? period / 2 : 1, repeats = periods ? periods : 1;
      for (int64_t i = 0; i < terms; ++i) {
        const int64_t low = 2 * (term + i), high = low + 1;
        const TapPieces& low_tap = taps[low % arguments.taps];
        const Piece* low_pieces = low_tap.pieces;
        const TapPieces& high_tap = taps[high % arguments.taps];
        const Piece* high_pieces = high_tap.pieces;
        const From* const low_from = from + low / arguments.taps * channel_stride;
        const From* const high_from = from + high / arguments.taps * channel_stride;
        for (int v = 0; v < arguments.vectors; ++v) {
          Vector<uint32_t> bits[kChannels];
          gather_vectors(low_from, unit * channel_stride, repeats, step, low_pieces, low_tap.count[v],
                         [&](int64_t n, Vector<uint32_t> value) UNFOLDCONV_INLINE_LAMBDA { bits[n] = value; });
          low_pieces += low_tap.count[v];
          T* const to = panel + (term + i - arguments.first) * width + v * lanes;
          gather_vectors(high_from, unit * channel_stride, repeats, step, high_pieces,
                         high < elements ? high_tap.count[v] : 0,
                         [&](int64_t n, Vector<uint32_t> value) UNFOLDCONV_INLINE_LAMBDA {
                           const Vector<uint32_t> both = bits[n] | value << 16;
                           __builtin_memcpy(to + n * terms * width, &both, sizeof both);
                         });
          high_pieces += high_tap.count[v];
        }
      }
      term += repeats * terms;
    }
  } else {
    for_each_tap(arguments.taps, arguments.first, arguments.count,
                 [&](int64_t term, int64_t channel, int64_t tap, int64_t channels) UNFOLDCONV_INLINE_LAMBDA {
                   const Piece* pieces = taps[tap].pieces;
                   T* to = panel + term * width;
                   for (int v = 0; v < arguments.vectors; ++v, to += lanes) {
                     gather_vectors(from + channel * channel_stride, channel_stride, channels, step, pieces,
                                    taps[tap].count[v], [&](int64_t n, auto value) UNFOLDCONV_INLINE_LAMBDA {
                                      T* const row = to + n * arguments.taps * width;
                                      if constexpr (__is_same(T, From))
                                        store(row, value);
                                      else
                                        store(row, widen_bits(value, From{}));
                                    });
                     pieces += taps[tap].count[v];
                   }
                 });
  }
}

template <class T, class From>
void pack_rows(const PanelArguments<From>& arguments, T* rows) {
  if constexpr (__is_same(T, Pair)) {
    constexpr int lanes = kLanes<float>;
    const int64_t width = arguments.vectors * lanes;
    for_each_tap(arguments.taps, arguments.first, arguments.count,
                 [&](int64_t term, int64_t channel, int64_t tap, int64_t channels) UNFOLDCONV_INLINE_LAMBDA {
                   const Piece* pieces = arguments.tap_pieces[tap].pieces;
                   auto* to = reinterpret_cast<uint16_t*>(rows) + term * width;
                   for (int v = 0; v < arguments.vectors; ++v, to += lanes) {
                     const int count = arguments.tap_pieces[tap].count[v];
                     gather_vectors(arguments.from + channel * arguments.channel_stride, arguments.channel_stride,
                                    channels, arguments.step, pieces, count,
                                    [&](int64_t n, Vector<uint32_t> value) UNFOLDCONV_INLINE_LAMBDA {
                                      const Halves bits = truncate(value);
                                      __builtin_memcpy(to + n * arguments.taps * width, &bits, sizeof bits);
                                    });
                     pieces += count;
                   }
                 });
  } else {
    pack_panel<T, From>(arguments, rows);
  }
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
