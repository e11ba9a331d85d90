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

// Rows in bytes.
struct Rows {
  int64_t bytes, count[2], from_pitch[2], to_pitch[2];
};

template <class F>
UNFOLDCONV_INLINE void for_each_row(const char* from, char* to, const Rows& rows, const F& f) {
  for (int64_t i = 0; i < rows.count[0]; ++i, from += rows.from_pitch[0], to += rows.to_pitch[0]) {
    const char* from_row = from;
    char* to_row = to;
    for (int64_t j = 0; j < rows.count[1]; ++j, from_row += rows.from_pitch[1], to_row += rows.to_pitch[1])
      f(from_row, to_row);
  }
}

// Rows of Bytes to 2 * Bytes: two copies that overlap.
template <int Bytes>
void copy_short_rows(const char* from, char* to, const Rows& rows) {
  const int64_t second = rows.bytes - Bytes;
  for_each_row(from, to, rows, [second](const char* source, char* target) UNFOLDCONV_INLINE_LAMBDA {
    copy_chunk<Bytes>(source, target);
    copy_chunk<Bytes>(source + second, target + second);
  });
}

void copy_rows(const char* from, char* to, Rows rows) {
  for (int axis = 1; axis >= 0 && rows.from_pitch[axis] == rows.bytes && rows.to_pitch[axis] == rows.bytes; --axis) {
    rows.bytes *= rows.count[axis];
    rows.count[axis] = 1;
  }
  if (rows.bytes > 128)
    return for_each_row(from, to, rows, [&rows](const char* source, char* target) UNFOLDCONV_INLINE_LAMBDA {
      for (int64_t i = 0; i + 64 < rows.bytes; i += 64) copy_chunk<64>(source + i, target + i);
      copy_chunk<64>(source + rows.bytes - 64, target + rows.bytes - 64);
    });
  if (rows.bytes > 64) return copy_short_rows<64>(from, to, rows);
  if (rows.bytes > 32) return copy_short_rows<32>(from, to, rows);
  if (rows.bytes > 16) return copy_short_rows<16>(from, to, rows);
  if (rows.bytes > 8) return copy_short_rows<8>(from, to, rows);
  if (rows.bytes > 4) return copy_short_rows<4>(from, to, rows);
  if (rows.bytes > 2) return copy_short_rows<2>(from, to, rows);
  copy_short_rows<1>(from, to, rows);
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

// Rows of channels become rows of space: to[c * to_step + x] = from[x * from_step + c], a square at a time.
template <class T>
UNFOLDCONV_INLINE void transpose(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t channels,
                                 int64_t count) {
  constexpr int side = 32 / sizeof(T) < 8 ? 4 : sizeof(T) < 4 ? 16 : 8;
  int64_t c = 0;
  for (; c + side <= channels; c += side) {
    int64_t x = 0;
    for (; x + side <= count; x += side)
      transpose_square<side>(from + x * from_step + c, from_step, to + c * to_step + x, to_step);
    for (; x < count; ++x)
      for (int i = 0; i < side; ++i) to[(c + i) * to_step + x] = from[x * from_step + c + i];
  }
  for (; c < channels; ++c) move_row<0, 1>(from + c, from_step, to + c * to_step, 1, count);
}

template <class From, class To>
void move(const From* from, To* to, const Block& block) {
  const int64_t from_step = block.from_stride[3], to_step = block.to_stride[3];
  if constexpr (std::is_same_v<From, To>) {
    if (from_step == 1 && to_step == 1) {
      constexpr int64_t size = sizeof(To);
      const Rows rows{block.count[3] * size,
                      {block.count[1], block.count[2]},
                      {block.from_stride[1] * size, block.from_stride[2] * size},
                      {block.to_stride[1] * size, block.to_stride[2] * size}};
      for (int64_t c = 0; c < block.count[0]; ++c)
        copy_rows(reinterpret_cast<const char*>(from + c * block.from_stride[0]),
                  reinterpret_cast<char*>(to + c * block.to_stride[0]), rows);
      return;
    }
    if constexpr (sizeof(To) <= 8) {
      if (block.from_stride[0] == 1 && to_step == 1 && block.count[0] >= 4) {
        for (int64_t i = 0; i < block.count[1]; ++i)
          for (int64_t j = 0; j < block.count[2]; ++j)
            transpose(from + i * block.from_stride[1] + j * block.from_stride[2], from_step,
                      to + i * block.to_stride[1] + j * block.to_stride[2], block.to_stride[0], block.count[0],
                      block.count[3]);
        return;
      }
    }
    if (to_step == 1 && from_step == 2) return move_rows<2, 1>(from, to, block);
  } else {
    if (from_step == 1 && to_step == 1) return move_rows<1, 1>(from, to, block);
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

void add_bool(const Bool* from, const Bool* from_end, Bool* to, const Block& block) {
  add<true>(reinterpret_cast<const uint8_t*>(from), reinterpret_cast<const uint8_t*>(from_end),
            reinterpret_cast<uint8_t*>(to), block);
}

PatchKernels patch_kernels() {
  return {move<uint8_t, uint8_t>,   move<uint16_t, uint16_t>,
          move<uint32_t, uint32_t>, move<uint64_t, uint64_t>,
          move<Bytes16, Bytes16>,   move<Half, float>,
          move<BFloat16, float>,    move<float, Half>,
          move<float, BFloat16>,    add_bool,
          add<false, uint8_t>,      add<false, uint16_t>,
          add<false, uint32_t>,     add<false, uint64_t>,
          add<false, Half>,         add<false, BFloat16>,
          add<false, float>,        add<false, double>};
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
