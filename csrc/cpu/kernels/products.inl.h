// What the micro-kernels of tile_kernels.h have in common: how terms are loaded, multiplied and added.
#pragma once

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// As many accumulators as registers allow, beside one row of b and one broadcast element.
constexpr int kMostVectors = kVectorBytes == 64 ? 4 : 2;

// A vector of terms: pairs are moved as 32 bits.
template <class T>
UNFOLDCONV_INLINE Vector<T> load_row(const T* from) {
  return load(from);
}
UNFOLDCONV_INLINE Vector<uint32_t> load_row(const Pair* from) { return load(reinterpret_cast<const uint32_t*>(from)); }

template <class T>
UNFOLDCONV_INLINE Vector<T> multiply_add(T a, Vector<T> b, Vector<T> sum) {
  return sum + broadcast(a) * b;
}

template <class V>
UNFOLDCONV_INLINE V multiply_add_lanes(V a, V b, V sum) {
  return sum + a * b;
}

#ifdef UNFOLDCONV_BF16_PRODUCTS
UNFOLDCONV_INLINE Vector<float> multiply_add(Pair a, Vector<uint32_t> b, Vector<float> sum) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, a);
  return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(bits), (__m512bh)b);
}
UNFOLDCONV_INLINE Vector<float> multiply_add_lanes(Vector<uint32_t> a, Vector<uint32_t> b, Vector<float> sum) {
  return (Vector<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
