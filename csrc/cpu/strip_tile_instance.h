// The micro-kernel of strips (tile_kernels.h).
namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// Patches at a time: as many accumulators as registers allow, beside one row of b and one broadcast term; and as few
// addresses, of which one serves three patches.
template <int Vectors>
constexpr int kStripPatches = kVectorBytes == 64 ? (Vectors <= 2   ? 12
                                                    : Vectors == 3 ? 9
                                                                   : 6)
                                                 : (Vectors == 1 ? 9 : 6);

// Lanes [0, count) of a vector as the elements of a result.
template <class Sum, class To>
UNFOLDCONV_INLINE void store_as(Vector<Sum> value, To* to, int count) {
  if constexpr (__is_same(Sum, To)) {
    if (count >= kLanes<Sum>)
      store(to, value);
    else
      store_lanes(to, value, count);
  } else if (count >= kLanes<Sum>) {
    narrow(value, to);
  } else {
    To part[kLanes<Sum>];
    narrow(value, part);
    for (int i = 0; i < count; ++i) to[i] = part[i];
  }
}

// The term that begins at an element, and the last of an odd number of elements, beyond which nothing is read.
template <class T>
UNFOLDCONV_INLINE T term_at(const typename ElementOf<T>::type* from) {
  T result;
  __builtin_memcpy(&result, from, sizeof result);
  return result;
}
template <class T>
UNFOLDCONV_INLINE T last_term_at(const typename ElementOf<T>::type* from) {
  if constexpr (__is_same(T, Pair))
    return {*from, 0};
  else
    return *from;
}

template <class T, class To, int Vectors, int Patches>
UNFOLDCONV_INLINE void strip_patches(const StripArguments<T, To>& arguments, int64_t first) {
  using Sum = typename SumOf<T>::type;
  using Element = typename ElementOf<T>::type;
  constexpr int lanes = kLanes<Sum>, halves = __is_same(T, Pair) ? 2 : 1, addresses = (Patches + 2) / 3;
  Vector<Sum> sum[Patches][Vectors] = {};
  const T* b = arguments.b;
  const int64_t step = arguments.step;
  const auto multiply_term = [&](const Element* const(&at)[addresses], const auto& term) UNFOLDCONV_INLINE_LAMBDA {
    decltype(load_row(b)) row[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) row[j] = load_row(b + j * lanes);
    b += Vectors * lanes;
#pragma GCC unroll 16
    for (int i = 0; i < Patches; ++i) {
      const T a = term(at[i / 3] + i % 3 * step);
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) sum[i][j] = multiply_add(a, row[j], sum[i][j]);
    }
  };
  for (int64_t strip = 0; strip < arguments.strips; ++strip) {
    const Element* at[addresses];
#pragma GCC unroll 8
    for (int i = 0; i < addresses; ++i) at[i] = arguments.strip[strip] + (first + 3 * i) * step;
    for (int64_t k = arguments.length / halves; k > 0; --k) {
      multiply_term(at, [](const Element* from) UNFOLDCONV_INLINE_LAMBDA { return term_at<T>(from); });
#pragma GCC unroll 8
      for (int i = 0; i < addresses; ++i) at[i] += halves;
    }
    if (arguments.length % halves != 0)
      multiply_term(at, [](const Element* from) UNFOLDCONV_INLINE_LAMBDA { return last_term_at<T>(from); });
  }
  To* to = arguments.to + first * arguments.to_step;
#pragma GCC unroll 16
  for (int i = 0; i < Patches; ++i, to += arguments.to_step)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j)
      store_as<Sum>(load(arguments.bias + j * lanes) + sum[i][j], to + j * lanes,
                    j + 1 < Vectors ? lanes : arguments.lanes - j * lanes);
}

template <class T, class To, int Vectors>
void strip_tile(const StripArguments<T, To>& arguments) {
  constexpr int64_t patches = kStripPatches<Vectors>;
  const int64_t count = arguments.count;
  int64_t first = 0;
  if (count >= patches) {
    for (; first + patches <= count; first += patches) strip_patches<T, To, Vectors, patches>(arguments, first);
    // Some once more with the last ones: a few at a time take as long as many.
    if (first < count) strip_patches<T, To, Vectors, patches>(arguments, count - patches);
  } else {
    for (; first < count; ++first) strip_patches<T, To, Vectors, 1>(arguments, first);
  }
}

template <class T, class To>
constexpr StripTiles<T, To> strip_tiles() {
  StripTiles<T, To> result{kLanes<typename SumOf<T>::type>, kMostVectors, {strip_tile<T, To, 1>, strip_tile<T, To, 2>}};
  if constexpr (kMostVectors > 2) result.tile[2] = strip_tile<T, To, 3>, result.tile[3] = strip_tile<T, To, 4>;
  return result;
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
