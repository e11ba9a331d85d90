// The functions of pack_kernels.h that move lines and transpose. Needs the element loads of pack_instance.h.
namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// --- lines -----------------------------------------------------------------------------------------------------------

// Writes a vector of elements as they stood in memory.
template <class From, class Element>
UNFOLDCONV_INLINE void put_raw(Vector<typename Raw<From>::Lane> raw, Element* to) {
  if constexpr (__is_same(Element, uint16_t)) {
    const Halves bits = truncate(raw);
    __builtin_memcpy(to, &bits, sizeof bits);
  } else if constexpr (__is_same(Element, From)) {
    store(to, raw);
  } else {
    store(to, widen_bits(raw, From{}));
  }
}

// The same for lanes [0, count) alone.
template <class From, class Element>
UNFOLDCONV_INLINE void put_raw(Vector<typename Raw<From>::Lane> raw, Element* to, int count) {
  if constexpr (__is_same(Element, uint16_t)) {
    const Halves bits = truncate(raw);
    Vector<uint16_t> halves{};
    __builtin_memcpy(&halves, &bits, sizeof bits);
    store_halves(to, halves, count);
  } else if constexpr (__is_same(Element, From)) {
    store_lanes(to, raw, count);
  } else {
    store_lanes(to, widen_bits(raw, From{}), count);
  }
}

// Every step-th element, for steps that vectors can be loaded with; returns how many it moved: all or none.
template <class From, class Element>
UNFOLDCONV_INLINE int64_t put_stepped(const From* from, int64_t step, Element* to, int64_t count) {
  if constexpr (kMostStep > 0 && sizeof(From) <= 4) {
    if (step <= 1 || step > kMostStep) return 0;
#if UNFOLDCONV_VECTOR_BYTES == 64
    constexpr int lanes = kLanes<float>;
    const auto* const source = Raw<From>::pointer(from);
    const auto load_from = [&](int64_t i, int present) UNFOLDCONV_INLINE_LAMBDA {
      return step == 2 ? load_even_lanes(source + i * step, 0, present)
                       : load_stepped_lanes(source + i * step, step, 0, present);
    };
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) put_raw<From>(load_from(i, lanes), to + i);
    const int rest = static_cast<int>(count - i);
    if (rest > 0) put_raw<From>(load_from(i, rest), to + i, rest);
#endif
    return count;
  }
  return 0;
}

template <class From, class Element>
UNFOLDCONV_INLINE void put_element(const From* from, Element* to) {
  if constexpr (__is_same(Element, uint16_t))
    *to = *bits_of(from);
  else
    *to = static_cast<Element>(*from);
}

template <class T, class From>
void pack_line(const From* from, int64_t step, T* to, int64_t count) {
  if constexpr (__is_same(T, Pair)) {
    auto* bits = reinterpret_cast<uint16_t*>(to);
    if (step == 1) {
      __builtin_memcpy(bits, from, count * sizeof *bits);
    } else {
      for (int64_t i = put_stepped(from, step, bits, count); i < count; ++i) bits[i] = bits_of(from)[i * step];
    }
    if (count % 2) bits[count] = 0;
  } else {
    int64_t i = put_stepped(from, step, to, count);
    if (step == 1) {
      constexpr int lanes = kLanes<T>;
      for (; i + lanes <= count; i += lanes) {
        if constexpr (__is_same(T, From))
          store(to + i, load(from + i));
        else
          store(to + i, widen(from + i));
      }
    }
    for (; i < count; ++i) to[i] = static_cast<T>(from[i * step]);
  }
}

// Elements [0, count) of a vector, 0 beyond, as they stand in a line of T.
template <class T, class From>
UNFOLDCONV_INLINE void put_elements(const From* from, int count, void* to) {
  if constexpr (__is_same(T, Pair)) {
    const auto bits = load_halves(bits_of(from), count);
    __builtin_memcpy(to, &bits, sizeof bits);
  } else {
    const auto raw = load_lanes(Raw<From>::pointer(from), 0, count);
    if constexpr (__is_same(T, From))
      store(static_cast<T*>(to), raw);
    else
      store(static_cast<T*>(to), widen_bits(raw, From{}));
  }
}

template <class T, class From>
void pack_lines(const LinesArguments<From>& arguments, T* lines) {
  // Whole vectors are written, in ascending order, so that each row overwrites what the one before wrote too much.
  constexpr int elements = __is_same(T, Pair) ? 2 * kLanes<float> : kLanes<T>;
  constexpr int64_t size = __is_same(T, Pair) ? 2 : sizeof(T);
  const auto [from, step, count, row_offset, rows, row_length, pitch] = arguments;
  char* to = reinterpret_cast<char*>(lines);
  for (int64_t i = 0; i < count; ++i, to += pitch * size)
    for (int64_t row = 0; row < rows; ++row) {
      const From* const source = from + i * step + row_offset[row];
      char* const target = to + row * row_length * size;
      int64_t j = 0;
      for (; j + elements < row_length; j += elements) put_elements<T, From>(source + j, elements, target + j * size);
      put_elements<T, From>(source + j, static_cast<int>(row_length - j), target + j * size);
    }
}

template <class T, class From>
void store_line(const typename SumOf<T>::type* from, From* to, int64_t step, int64_t count) {
  using Sum = typename SumOf<T>::type;
  constexpr int lanes = kLanes<Sum>;
  int64_t i = 0;
  if (step == 1) {
    for (; i + lanes <= count; i += lanes) {
      if constexpr (__is_same(Sum, From))
        store(to + i, load(from + i));
      else
        narrow(load(from + i), to + i);
    }
    if constexpr (__is_same(Sum, From)) {
      if (i < count) store_lanes(to + i, load_lanes(from + i, 0, count - i), count - i);
      return;
    }
  }
  for (; i < count; ++i) to[i * step] = static_cast<From>(from[i]);
}

// --- transposes ------------------------------------------------------------------------------------------------------

// rows[i][j] <-> rows[j][i]
template <class T>
UNFOLDCONV_INLINE void transpose_square(Vector<T> (&rows)[kLanes<T>]) {
  constexpr int lanes = kLanes<T>;
#define UNFOLDCONV_EXCHANGE(DISTANCE)                                                 \
  if constexpr (DISTANCE < lanes) {                                                   \
    _Pragma("GCC unroll 16") for (int i = 0; i < lanes; ++i) if ((i & DISTANCE) == 0) \
        exchange<DISTANCE, Vector<T>, lanes>(rows[i], rows[i + DISTANCE]);            \
  }
  UNFOLDCONV_EXCHANGE(1)
  UNFOLDCONV_EXCHANGE(2)
  UNFOLDCONV_EXCHANGE(4)
  UNFOLDCONV_EXCHANGE(8)
#undef UNFOLDCONV_EXCHANGE
}

// Elements as wide as those of the result, for which a line of From is one of T.
template <class T, class From>
constexpr bool kMovesLines = __is_same(T, From) || __is_same(T, Pair);

constexpr int64_t kAheadBytes = 256;
constexpr int64_t kRowsAhead = 16;
constexpr int64_t kLineElements = 32;  // of 16 bits in a line of the cache

// The first `count` elements of a vector of T, 0 beyond, of which nothing is read.
template <class T, class From>
UNFOLDCONV_INLINE Vector<typename SumOf<T>::type> load_elements(const From* from, int count) {
  using Sum = typename SumOf<T>::type;
  if constexpr (__is_same(T, Pair)) {
    return (Vector<Sum>)load_halves(bits_of(from), count);
  } else {
    const auto raw = load_lanes(Raw<From>::pointer(from), 0, count);
    if constexpr (__is_same(T, From))
      return raw;
    else
      return widen_bits(raw, From{});
  }
}

// Neighbouring terms adjoin in memory: squares of lanes x lanes through registers.
template <class T, class From>
UNFOLDCONV_INLINE void transpose_squares(const TransposeArguments<From>& arguments, T* to, int64_t to_step) {
  using Sum = typename SumOf<T>::type;  // as wide as T
  constexpr int lanes = kLanes<Sum>, halves = __is_same(T, Pair) ? 2 : 1, elements = lanes * halves;
  const auto& [from, lane_stride, term_stride, lane_count, terms, width, period] = arguments;
  const int64_t rows_per_period = terms / period;
  const auto row_of = [&](int64_t row) UNFOLDCONV_INLINE_LAMBDA {
    return to + (period == 1 ? row : row % period * rows_per_period + row / period) * to_step;
  };
  for (int64_t lane = 0; lane < width; lane += lanes) {
    const int64_t present = lane_count - lane, room = width - lane;
    const From* const source = from + lane * lane_stride;
    int64_t term = 0;
    if (present >= lanes)
      for (; term + elements <= terms; term += elements) {
        Vector<Sum> rows[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
          const From* const row = source + i * lane_stride + term;
          // Rows may be pages apart, where no hardware fetches ahead: what the next call may want.
          __builtin_prefetch(row + kAheadBytes / sizeof(From));
          if constexpr (kMovesLines<T, From>)
            __builtin_memcpy(&rows[i], row, kVectorBytes);
          else
            rows[i] = widen(row);
        }
        transpose_square<Sum>(rows);
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) __builtin_memcpy(row_of(term / halves + i) + lane, &rows[i], kVectorBytes);
      }
    // What is left of both.
    for (; term < terms; term += elements) {
      const int count = static_cast<int>(terms - term < elements ? terms - term : elements);
      Vector<Sum> rows[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i)
        rows[i] = i < present ? load_elements<T>(source + i * lane_stride + term, count) : Vector<Sum>{};
      transpose_square<Sum>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        if (i * halves >= count) continue;
        T* const row = row_of(term / halves + i) + lane;
        if (room >= lanes)
          __builtin_memcpy(row, &rows[i], kVectorBytes);
        else
          store_lanes(reinterpret_cast<Sum*>(row), rows[i], static_cast<int>(room));
      }
    }
  }
}

// Neighbouring lanes adjoin: pairs are zipped out of two terms, a vector at a time.
template <class From>
UNFOLDCONV_INLINE void pair_terms(const TransposeArguments<From>& arguments, Pair* to, int64_t to_step) {
  constexpr int lanes = kLanes<float>;
  const int64_t lane_count = arguments.lanes, width = arguments.width;
  for (int64_t term = 0; term < arguments.terms; term += 2, to += to_step) {
    const uint16_t* const low = bits_of(arguments.from + term * arguments.term_stride);
    const uint16_t* const high = low + arguments.term_stride;
    const bool both = term + 1 < arguments.terms;
    // Rows of one panel out of many lie far apart, where no hardware fetches ahead.
    const int64_t ahead = kRowsAhead * arguments.term_stride;
    for (int64_t lane = 0; lane < lane_count; lane += kLineElements) {
      __builtin_prefetch(low + ahead + lane);
      __builtin_prefetch(high + ahead + lane);
    }
    for (int64_t lane = 0; lane < width; lane += lanes) {
      const int64_t present = lane_count - lane, room = width - lane;
      const int count = static_cast<int>(present < 0 ? 0 : present < lanes ? present : lanes);
      Vector<uint32_t> pairs = load_lanes(low + lane, 0, count);
      if (both) pairs |= load_lanes(high + lane, 0, count) << 16;
      if (room >= lanes)
        __builtin_memcpy(to + lane, &pairs, sizeof pairs);
      else
        store_lanes(reinterpret_cast<float*>(to + lane), (Vector<float>)pairs, static_cast<int>(room));
    }
  }
}

template <class T, class From>
void transpose(const TransposeArguments<From>& arguments, T* to, int64_t to_step) {
  const auto& [from, lane_stride, term_stride, lane_count, terms, width, period] = arguments;
  if (term_stride == 1) return transpose_squares(arguments, to, to_step);
  if constexpr (__is_same(T, Pair)) {
    if (lane_stride == 1) return pair_terms(arguments, to, to_step);
  }
  constexpr int halves = __is_same(T, Pair) ? 2 : 1;
  for (int64_t term = 0; term < terms; term += halves) {
    T* const row = to + (period == 1 ? term / halves : term % period * (terms / period) + term / period) * to_step;
    const From* const source = from + term * term_stride;
    int64_t i = 0;
    if constexpr (!__is_same(T, Pair)) {
      if (lane_stride == 1) {
        pack_line<T, From>(source, 1, row, lane_count);
        i = lane_count;
      }
    }
    for (; i < lane_count; ++i) {
      if constexpr (__is_same(T, Pair)) {
        const uint16_t* const bits = bits_of(source) + i * lane_stride;
        row[i] = {bits[0], term + 1 < terms ? bits[term_stride] : uint16_t{0}};
      } else {
        row[i] = static_cast<T>(source[i * lane_stride]);
      }
    }
    for (; i < width; ++i) row[i] = T{};
  }
}

// --- weights as lines ------------------------------------------------------------------------------------------------

template <class T, class From>
void pack_taps(const TapsArguments<From>& arguments, T* lines) {
  using Element = typename ElementOf<T>::type;
  using Lane = typename Raw<From>::Lane;
  using Index = std::conditional_t<sizeof(Lane) == 4, int32_t, int64_t>;
  constexpr int lanes = kLanes<Lane>;
  const auto& [from, row_stride, rows, channel_stride, channels, offset, taps, line_taps, pitch] = arguments;
  auto* const to = reinterpret_cast<Element*>(lines);
  // The taps that one vector holds, all or those of a line, and how far apart they lie in memory.
  int64_t part = taps, low = 0, high = 0;
  const auto measure = [&] {
    low = high = offset[0];
    for (int64_t tap = 1; tap < part; ++tap) {
      low = offset[tap] < low ? offset[tap] : low;
      high = offset[tap] > high ? offset[tap] : high;
    }
  };
  measure();
  if (high - low >= lanes) {
    part = line_taps;
    measure();
  }
  if (high - low >= lanes || part > lanes) {
    for (int64_t channel = 0; channel < channels; ++channel)
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t tap = 0; tap < taps; ++tap)
          put_element(from + row * row_stride + channel * channel_stride + offset[tap],
                      to + row * pitch + channel * taps + tap);
    return;
  }
  typedef Index Mask __attribute__((vector_size(kVectorBytes)));
  Mask index{};
  for (int64_t tap = 0; tap < part; ++tap) index[tap] = static_cast<Index>(offset[tap] - low);
  const int span = static_cast<int>(high - low + 1);
  // Whole vectors are written, in ascending order along each line. Channels may be pages apart, where no hardware
  // fetches ahead.
  const int64_t ahead = kChannels * channel_stride;
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int64_t tap = 0; tap < taps; tap += part) {
      const auto* source = Raw<From>::pointer(from) + channel * channel_stride + offset[tap] - offset[0] + low;
      Element* target = to + channel * taps + tap;
      for (int64_t row = 0; row < rows; ++row, source += row_stride, target += pitch) {
        if (channel + kChannels < channels) __builtin_prefetch(source + ahead);
        put_raw<From>(__builtin_shuffle(load_lanes(source, 0, span), index), target);
      }
    }
}

// Square blocks of lanes x lanes: `fetch` brings row j of a block, `put` takes what becomes of it.
template <class Lane, class Fetch, class Put>
UNFOLDCONV_INLINE void turn_square(int fetched, int put_count, const Fetch& fetch, const Put& put) {
  constexpr int lanes = kLanes<Lane>;
  Vector<Lane> block[lanes];
#pragma GCC unroll 16
  for (int j = 0; j < lanes; ++j) block[j] = j < fetched ? fetch(j) : Vector<Lane>{};
  transpose_square<Lane>(block);
#pragma GCC unroll 16
  for (int j = 0; j < lanes; ++j)
    if (j < put_count) put(j, block[j]);
}

// Rows are turned so many at a time: of these, each line of the cache is read whole, and as many lines are written.
constexpr int64_t kTurnedRows = 64;

template <class T, class From>
void turn(const From* from, int64_t step, int64_t rows, int64_t count, T* lines, int64_t pitch) {
  using Element = typename ElementOf<T>::type;
  using Lane = typename Raw<From>::Lane;
  constexpr int lanes = kLanes<Lane>, halves = __is_same(T, Pair) ? 2 : 1, elements = lanes * halves;
  const int64_t ahead = kRowsAhead * step;
  auto* const to = reinterpret_cast<Element*>(lines);
  for (int64_t first = 0; first < rows; first += kTurnedRows) {
    const int64_t end = rows - first < kTurnedRows ? rows : first + kTurnedRows;
    for (int64_t i = 0; i < count; i += elements)
      for (int64_t row = first; row < end; row += lanes) {
        const int square = static_cast<int>(rows - row < lanes ? rows - row : lanes);
        const int present = static_cast<int>(count - i < elements ? count - i : elements);
        // Where the next row of a square is read and the next line written: these go in order.
        const auto* source = Raw<From>::pointer(from) + row + i * step;
        Element* target = to + row * pitch + i;
        const auto load_row = [&](int) UNFOLDCONV_INLINE_LAMBDA {
          __builtin_prefetch(source + ahead);
          const auto values = load_lanes(source, 0, square);
          source += step;
          return values;
        };
        if constexpr (halves == 2) {  // two rows become one of pairs
          const auto load_pairs = [&](int j) UNFOLDCONV_INLINE_LAMBDA {
            const auto low = load_row(2 * j);
            return 2 * j + 1 < present ? low | load_row(2 * j + 1) << 16 : low;
          };
          if (present == elements)
            turn_square<Lane>(lanes, square, load_pairs, [&](int, Vector<Lane> pairs) UNFOLDCONV_INLINE_LAMBDA {
              __builtin_memcpy(target, &pairs, sizeof pairs);
              target += pitch;
            });
          else
            turn_square<Lane>((present + 1) / 2, square, load_pairs,
                              [&](int, Vector<Lane> pairs) UNFOLDCONV_INLINE_LAMBDA {
                                store_halves(target, (Vector<uint16_t>)pairs, present);
                                target += pitch;
                              });
        } else if (present == elements) {
          turn_square<Lane>(lanes, square, load_row, [&](int, Vector<Lane> values) UNFOLDCONV_INLINE_LAMBDA {
            put_raw<From>(values, target);
            target += pitch;
          });
        } else {
          turn_square<Lane>(present, square, load_row, [&](int, Vector<Lane> values) UNFOLDCONV_INLINE_LAMBDA {
            put_raw<From>(values, target, present);
            target += pitch;
          });
        }
      }
  }
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
