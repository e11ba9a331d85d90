// The functions of pack_kernels.h that move lines. Needs the element loads of pack_panel.inl.h.
namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

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
UNFOLDCONV_INLINE int64_t put_stepped([[maybe_unused]] const From* from, int64_t step, [[maybe_unused]] Element* to,
                                      int64_t count) {
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

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
