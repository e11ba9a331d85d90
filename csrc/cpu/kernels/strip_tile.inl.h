// The micro-kernel of strips (tile_kernels.h).
#include "cpu/kernels/products.inl.h"

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

// sum += the term that begins at an element times a row of b.
template <class T>
UNFOLDCONV_INLINE Vector<typename SumOf<T>::type> multiply_add_at(const typename ElementOf<T>::type* from,
                                                                  decltype(load_row(static_cast<const T*>(nullptr))) b,
                                                                  Vector<typename SumOf<T>::type> sum) {
  T term;
  __builtin_memcpy(&term, from, sizeof term);
  return multiply_add(term, b, sum);
}
#ifdef UNFOLDCONV_BF16_PRODUCTS
// The same with 0 for the second half of the term, whatever lies there.
UNFOLDCONV_INLINE Vector<float> multiply_add_half_at(const uint16_t* from, Vector<uint32_t> b, Vector<float> sum) {
  uint32_t term;
  __builtin_memcpy(&term, from, sizeof term);
  const __m512i half = _mm512_and_si512(_mm512_set1_epi32(static_cast<int>(term)), _mm512_set1_epi32(0xffff));
  return multiply_add_lanes((Vector<uint32_t>)half, b, sum);
}
#endif

template <class T, class To, int Vectors, int Patches>
UNFOLDCONV_INLINE void strip_patches(const StripArguments<T, To>& arguments, int64_t first) {
  using Sum = typename SumOf<T>::type;
  using Element = typename ElementOf<T>::type;
  constexpr int lanes = kLanes<Sum>, halves = __is_same(T, Pair) ? 2 : 1, addresses = (Patches + 2) / 3;
  Vector<Sum> sum[Patches][Vectors] = {};
  Sum total[Patches][Vectors * lanes];  // bias and all blocks before this one, once there are any
  bool flushed = false;
  const T* b = arguments.b;
  const int64_t step = arguments.step;
  const auto flush_block = [&]() UNFOLDCONV_INLINE_LAMBDA {
#pragma GCC unroll 16
    for (int i = 0; i < Patches; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) {
        Sum* const at = total[i] + j * lanes;
        store(at, load(flushed ? at : arguments.bias + j * lanes) + sum[i][j]);
        sum[i][j] = Vector<Sum>{};
      }
    flushed = true;
  };
  const auto multiply_term = [&](const Element* const(&at)[addresses], const auto& add) UNFOLDCONV_INLINE_LAMBDA {
    decltype(load_row(b)) row[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) row[j] = load_row(b + j * lanes);
    b += Vectors * lanes;
#pragma GCC unroll 16
    for (int i = 0; i < Patches; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) sum[i][j] = add(at[i / 3] + i % 3 * step, row[j], sum[i][j]);
  };
  int64_t room = kBlockTerms<T>;
  for (int64_t strip = 0; strip < arguments.strips; ++strip) {
    if (arguments.strip[strip] == nullptr) {
      b += (arguments.length + halves - 1) / halves * Vectors * lanes;
      continue;
    }
    const Element* at[addresses];
#pragma GCC unroll 8
    for (int i = 0; i < addresses; ++i) at[i] = arguments.strip[strip] + (first + 3 * i) * step;
    for (int64_t left = arguments.length / halves; left > 0;) {
      if (room == 0) flush_block(), room = kBlockTerms<T>;
      int64_t count = left < room ? left : room;
      left -= count;
      room -= count;
      for (; count > 0; --count) {
        multiply_term(at, [](const Element* from, auto row, auto value)
                              UNFOLDCONV_INLINE_LAMBDA { return multiply_add_at<T>(from, row, value); });
#pragma GCC unroll 8
        for (int i = 0; i < addresses; ++i) at[i] += halves;
      }
    }
#ifdef UNFOLDCONV_BF16_PRODUCTS
    if constexpr (halves == 2)
      if (arguments.length % 2 != 0) {
        if (room == 0) flush_block(), room = kBlockTerms<T>;
        --room;
        multiply_term(at, [](const Element* from, auto row, auto value)
                              UNFOLDCONV_INLINE_LAMBDA { return multiply_add_half_at(from, row, value); });
      }
#endif
  }
  To* to = arguments.to + first * arguments.to_step;
#pragma GCC unroll 16
  for (int i = 0; i < Patches; ++i, to += arguments.to_step)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j)
      store_as<Sum>(load((flushed ? total[i] : arguments.bias) + j * lanes) + sum[i][j], to + j * lanes,
                    j + 1 < Vectors ? lanes : arguments.lanes - j * lanes);
}

template <class T, class To, int Vectors>
void strip_tile(const StripArguments<T, To>& arguments) {
  constexpr int64_t patches = kStripPatches<Vectors>, half = (patches + 1) / 2;
  const int64_t count = arguments.count;
  int64_t first = 0;
  if (count >= patches) {
    for (; first + patches <= count; first += patches) strip_patches<T, To, Vectors, patches>(arguments, first);
    // Some once more with the last ones: a few at a time take as long as many.
    if (first + half < count)
      strip_patches<T, To, Vectors, patches>(arguments, count - patches);
    else if (first < count)
      strip_patches<T, To, Vectors, half>(arguments, count - half);
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
