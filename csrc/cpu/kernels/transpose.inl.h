// The functions of pack_kernels.h that transpose. Needs the element loads of pack_panel.inl.h and the lines of
// pack_lines.inl.h.
namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

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
