// The inner loops of im2col and col2im (patch_kernels.h). Rows are often shorter than a vector (7 or 14 elements), so
// what counts is that a short row costs a handful of instructions: no call, no loop over elements.
namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// --- moving -----------------------------------------------------------------------------------------------------

template <int Bytes>
struct ChunkOf {
  typedef uint8_t type __attribute__((vector_size(Bytes)));
};
template <>
struct ChunkOf<1> {
  using type = uint8_t;
};

template <int Bytes>
UNFOLDCONV_INLINE void copy_chunk(const char* from, char* to) {
  typename ChunkOf<Bytes>::type chunk;
  __builtin_memcpy(&chunk, from, Bytes);
  __builtin_memcpy(to, &chunk, Bytes);
}

template <class F>
UNFOLDCONV_INLINE void for_each_row(const char* from, const int64_t* offset, int64_t taps, char* to, int64_t to_step,
                                    const Rows& rows, const F& f) {
  for (int64_t tap = 0; tap < taps; ++tap, to += to_step) {
    const char* from_slice = from + offset[tap];
    char* to_slice = to;
    for (int64_t i = 0; i < rows.count[0]; ++i, from_slice += rows.from_pitch[0], to_slice += rows.to_pitch[0]) {
      const char* from_row = from_slice;
      char* to_row = to_slice;
      for (int64_t j = 0; j < rows.count[1]; ++j, from_row += rows.from_pitch[1], to_row += rows.to_pitch[1])
        f(from_row, to_row);
    }
  }
}

// Rows of Bytes to 2 * Bytes: two copies that overlap.
template <int Bytes>
void copy_short_rows(const char* from, const int64_t* offset, int64_t taps, char* to, int64_t to_step,
                     const Rows& rows) {
  const int64_t second = rows.bytes - Bytes;
  for_each_row(from, offset, taps, to, to_step, rows,
               [second](const char* source, char* target) UNFOLDCONV_INLINE_LAMBDA {
                 copy_chunk<Bytes>(source, target);
                 copy_chunk<Bytes>(source + second, target + second);
               });
}

void copy_rows(const char* from, const int64_t* offset, int64_t taps, char* to, int64_t to_step, const Rows& given) {
  Rows rows = given;
  for (int axis = 1; axis >= 0 && rows.from_pitch[axis] == rows.bytes && rows.to_pitch[axis] == rows.bytes; --axis) {
    rows.bytes *= rows.count[axis];
    rows.count[axis] = 1;
  }
  if (rows.bytes > 128)
    return for_each_row(from, offset, taps, to, to_step, rows,
                        [&rows](const char* source, char* target) UNFOLDCONV_INLINE_LAMBDA {
                          for (int64_t i = 0; i + 64 < rows.bytes; i += 64) copy_chunk<64>(source + i, target + i);
                          copy_chunk<64>(source + rows.bytes - 64, target + rows.bytes - 64);
                        });
  const auto copy = rows.bytes > 64   ? copy_short_rows<64>
                    : rows.bytes > 32 ? copy_short_rows<32>
                    : rows.bytes > 16 ? copy_short_rows<16>
                    : rows.bytes > 8  ? copy_short_rows<8>
                    : rows.bytes > 4  ? copy_short_rows<4>
                    : rows.bytes > 2  ? copy_short_rows<2>
                                      : copy_short_rows<1>;
  copy(from, offset, taps, to, to_step, rows);
}

// to[i * ToStep] = from[i * FromStep]; a step of 0 stands for one that is known at run time only.
template <int FromStep, int ToStep, class From, class To>
UNFOLDCONV_INLINE void move_row(const From* from, int64_t from_step, To* to, int64_t to_step, int64_t count) {
  if (FromStep) from_step = FromStep;
  if (ToStep) to_step = ToStep;
  for (int64_t i = 0; i < count; ++i) to[i * to_step] = static_cast<To>(from[i * from_step]);
}

template <class From, class To>
UNFOLDCONV_INLINE void convert_row(const From* from, To* to, int64_t count) {
  constexpr int lanes = kLanes<float>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    if constexpr (std::is_same_v<To, float>)
      store(to + i, widen(from + i));
    else
      narrow(load(from + i), to + i);
  }
  move_row<1, 1>(from + i, 1, to + i, 1, count - i);
}

template <int FromStep, int ToStep, class From, class To>
void move_rows(const From* from, To* to, const Block& block) {
  const int64_t (&count)[4] = block.count;
  for (int64_t c = 0; c < count[0]; ++c)
    for (int64_t i = 0; i < count[1]; ++i)
      for (int64_t j = 0; j < count[2]; ++j) {
        const From* source = from + c * block.from_stride[0] + i * block.from_stride[1] + j * block.from_stride[2];
        To* target = to + c * block.to_stride[0] + i * block.to_stride[1] + j * block.to_stride[2];
        if constexpr (FromStep == 1 && ToStep == 1)
          convert_row(source, target, count[3]);
        else
          move_row<FromStep, ToStep>(source, block.from_stride[3], target, block.to_stride[3], count[3]);
      }
}

// to[c * to_step + x] = from[x * from_step + c], a square at a time. The last squares overlap those before them.
template <int Side, class T>
void transpose_squares(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows, int64_t count) {
  for (int64_t c = 0; c < rows; c += Side) {
    if (c > rows - Side) c = rows - Side;
    for (int64_t x = 0; x < count; x += Side) {
      if (x > count - Side) x = count - Side;
      transpose_square<Side>(from + x * from_step + c, from_step, to + c * to_step + x, to_step);
    }
  }
}

template <class T>
void transpose(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows, int64_t count) {
  constexpr int wanted = sizeof(T) < 4 ? 16 : 8, side = wanted < kLanes<T> ? wanted : kLanes<T>;
  const int64_t least = rows < count ? rows : count;
  if (least >= side) return transpose_squares<side>(from, from_step, to, to_step, rows, count);
  if constexpr (side > 8)
    if (least >= 8) return transpose_squares<8>(from, from_step, to, to_step, rows, count);
  if constexpr (side > 4)
    if (least >= 4) return transpose_squares<4>(from, from_step, to, to_step, rows, count);
  for (int64_t c = 0; c < rows; ++c) move_row<0, 1>(from + c, from_step, to + c * to_step, 1, count);
}

// Two rows whose elements alternate on one side, of Count elements or more: the last ones overlap those before them.
template <int Count, class T>
void move_pairs(const T* from, T* to, const Block& block) {
  const bool split = block.from_stride[3] == 2;
  const int64_t last = block.count[3] - Count;
  for (int64_t i = 0; i < block.count[1]; ++i)
    for (int64_t j = 0; j < block.count[2]; ++j) {
      const T* source = from + i * block.from_stride[1] + j * block.from_stride[2];
      T* target = to + i * block.to_stride[1] + j * block.to_stride[2];
      for (int64_t x = 0;; x = x + Count < last ? x + Count : last) {
        if (split)
          unzip<Count>(source + 2 * x, target + x, target + block.to_stride[0] + x);
        else
          zip<Count>(source + x, source + block.from_stride[0] + x, target + 2 * x);
        if (x == last) break;
      }
    }
}

template <class T>
void move_pairs_of_any_length(const T* from, T* to, const Block& block) {
  const int64_t count = block.count[3];
  if constexpr (kLanes<T> >= 32)
    if (count >= 32) return move_pairs<32>(from, to, block);
  if constexpr (kLanes<T> >= 16)
    if (count >= 16) return move_pairs<16>(from, to, block);
  if constexpr (kLanes<T> >= 8)
    if (count >= 8) return move_pairs<8>(from, to, block);
  if constexpr (kLanes<T> >= 4)
    if (count >= 4) return move_pairs<4>(from, to, block);
  if (count >= 2) return move_pairs<2>(from, to, block);
  move_pairs<1>(from, to, block);
}

template <class From, class To>
void move(const From* from, To* to, const Block& block) {
  const int64_t (&count)[4] = block.count;
  const int64_t (&source)[4] = block.from_stride;
  const int64_t (&target)[4] = block.to_stride;
  if constexpr (std::is_same_v<From, To>) {
    if (source[3] == 1 && target[3] == 1) {
      constexpr int64_t size = sizeof(To);
      const Rows rows{count[3] * size,
                      {count[1], count[2]},
                      {source[1] * size, source[2] * size},
                      {target[1] * size, target[2] * size}};
      const int64_t no_offset = 0;
      for (int64_t c = 0; c < count[0]; ++c)
        copy_rows(reinterpret_cast<const char*>(from + c * source[0]), &no_offset, 1,
                  reinterpret_cast<char*>(to + c * target[0]), 0, rows);
      return;
    }
    if constexpr (sizeof(To) <= 8) {
      const bool from_rows = source[0] == 1 && target[3] == 1, to_rows = source[3] == 1 && target[0] == 1;
      if ((from_rows && source[3] == 2 && count[0] == 2) || (to_rows && target[3] == 2 && count[0] == 2))
        return move_pairs_of_any_length(from, to, block);
      if ((from_rows || to_rows) && count[0] >= 4) {
        for (int64_t i = 0; i < count[1]; ++i)
          for (int64_t j = 0; j < count[2]; ++j) {
            const From* block_from = from + i * source[1] + j * source[2];
            To* block_to = to + i * target[1] + j * target[2];
            if (from_rows)
              transpose(block_from, source[3], block_to, target[0], count[0], count[3]);
            else
              transpose(block_from, source[0], block_to, target[3], count[3], count[0]);
          }
        return;
      }
    }
    if (target[3] == 1 && source[3] == 2) return move_rows<2, 1>(from, to, block);
  } else {
    if (source[3] == 1 && target[3] == 1) return move_rows<1, 1>(from, to, block);
  }
  move_rows<0, 0>(from, to, block);
}

// --- adding -----------------------------------------------------------------------------------------------------

template <class T>
UNFOLDCONV_INLINE Vector<Accumulator<T>> load_wide(const T* from) {
  if constexpr (std::is_same_v<T, Accumulator<T>>)
    return load(from);
  else
    return widen(from);
}

// to += from or, of bool, to |= from.
template <bool Or, class T>
void add(const T* from, const T* from_end, Accumulator<T>* to, const Block& block) {
  using Sum = Accumulator<T>;
  using Lane = std::conditional_t<
      sizeof(Sum) == 1, uint8_t,
      std::conditional_t<sizeof(Sum) == 2, uint16_t, std::conditional_t<sizeof(Sum) == 4, uint32_t, uint64_t>>>;
  constexpr int lanes = kLanes<Sum>;
  const int64_t whole = block.count[3] / lanes * lanes, rest = block.count[3] - whole;
  // Lanes of the next row are set to 0, which adds nothing: a sum that began at 0 is never -0.
  Vector<Lane> in_row;
  for (int i = 0; i < lanes; ++i) in_row[i] = i < rest ? static_cast<Lane>(-1) : 0;
  const auto add_to = [](Sum* target, Vector<Sum> value) UNFOLDCONV_INLINE_LAMBDA {
    if constexpr (Or)
      store(target, load(target) | value);
    else
      store(target, load(target) + value);
  };
  for (int64_t i = 0; i < block.count[1]; ++i) {
    for (int64_t j = 0; j < block.count[2]; ++j) {
      const T* source = from + i * block.from_stride[1] + j * block.from_stride[2];
      Sum* target = to + i * block.to_stride[1] + j * block.to_stride[2];
      for (int64_t x = 0; x < whole; x += lanes) add_to(target + x, load_wide(source + x));
      if (rest == 0) continue;
      source += whole;
      T copy[lanes];
      if (from_end - source < lanes) {
        __builtin_memset(static_cast<void*>(copy), 0, sizeof copy);
        __builtin_memcpy(static_cast<void*>(copy), source, rest * sizeof(T));
        source = copy;
      }
      add_to(target + whole, (Vector<Sum>)((Vector<Lane>)load_wide(source) & in_row));
    }
  }
}

template <bool Or, class T>
void sum(const T* columns, const Term* terms, int64_t count, int64_t pitch, Accumulator<T>* to, int64_t to_pitch,
         int64_t rows, bool start) {
  using Sum = Accumulator<T>;
  using Lane = UnsignedOf<sizeof(Sum)>;
  constexpr int lanes = kLanes<Sum>;
  Vector<Lane> lane, in_term[kMostTerms];
  for (int i = 0; i < lanes; ++i) lane[i] = static_cast<Lane>(i);
  for (int64_t t = 0; t < count; ++t)
    in_term[t] = (Vector<Lane>)(lane >= static_cast<Lane>(terms[t].first)) &
                 (Vector<Lane>)(lane < static_cast<Lane>(terms[t].end));
  for (int64_t row = 0; row < rows; ++row, columns += pitch, to += to_pitch) {
    Vector<Sum> total{};
    if (!start) total = load(to);
    for (int64_t t = 0; t < count; ++t) {
      if (row < terms[t].first_row || row >= terms[t].end_row) continue;
      const auto value = (Vector<Sum>)((Vector<Lane>)load_wide(columns + terms[t].from) & in_term[t]);
      if constexpr (Or)
        total |= value;
      else
        total += value;
    }
    store(to, total);
  }
}

void sum_bool(const Bool* columns, const Term* terms, int64_t count, int64_t pitch, Bool* to, int64_t to_pitch,
              int64_t rows, bool start) {
  sum<true>(reinterpret_cast<const uint8_t*>(columns), terms, count, pitch, reinterpret_cast<uint8_t*>(to), to_pitch,
            rows, start);
}

void add_bool(const Bool* from, const Bool* from_end, Bool* to, const Block& block) {
  add<true>(reinterpret_cast<const uint8_t*>(from), reinterpret_cast<const uint8_t*>(from_end),
            reinterpret_cast<uint8_t*>(to), block);
}

}  // namespace

void add_patches(Kernels& kernels) {
  kernels.patches = {kVectorBytes,
                     copy_rows,
                     move<uint8_t, uint8_t>,
                     move<uint16_t, uint16_t>,
                     move<uint32_t, uint32_t>,
                     move<uint64_t, uint64_t>,
                     move<Bytes16, Bytes16>,
                     move<Half, float>,
                     move<BFloat16, float>,
                     move<float, Half>,
                     move<float, BFloat16>,
                     add_bool,
                     add<false, uint8_t>,
                     add<false, uint16_t>,
                     add<false, uint32_t>,
                     add<false, uint64_t>,
                     add<false, Half>,
                     add<false, BFloat16>,
                     add<false, float>,
                     add<false, double>,
                     sum_bool,
                     sum<false, uint8_t>,
                     sum<false, uint16_t>,
                     sum<false, uint32_t>,
                     sum<false, uint64_t>,
                     sum<false, Half>,
                     sum<false, BFloat16>,
                     sum<false, float>,
                     sum<false, double>};
}

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
