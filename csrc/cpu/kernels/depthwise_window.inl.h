// What the sums of the depthwise engine have in common: which taps and positions meet the image, and how sums are put
// into a result.
#pragma once

#include "cpu/kernels/depthwise_elements.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

UNFOLDCONV_INLINE constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
UNFOLDCONV_INLINE constexpr int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }
// Rounded up, for b > 0. A division takes longer than a row of a small kernel, and is rarely needed.
UNFOLDCONV_INLINE int64_t quotient_up(int64_t a, int64_t b) {
  if (b == 1) return a;
  return a > 0 ? (a - 1) / b + 1 : -(-a / b);
}

// The i in [0, count) with 0 <= first + i * step + [0, width] < size for some element of the interval.
struct Range {
  int64_t begin, end;
};
UNFOLDCONV_INLINE Range inside(int64_t first, int64_t step, int64_t width, int64_t begin, int64_t end, int64_t count) {
  return {greatest(0, quotient_up(begin - first - width, step)), least(count, quotient_up(end - first, step))};
}

// Cuts [0, count) into pieces of nearly one size, at most `most`: f(first, size).
template <class F>
UNFOLDCONV_INLINE void in_pieces(int64_t count, int64_t most, const F& f) {
  const int64_t pieces = quotient_up(count, most);
  for (int64_t piece = 0, first = 0; piece < pieces; ++piece) {
    const int64_t size = count / pieces + (piece < count % pieces);
    f(first, size);
    first += size;
  }
}

// Sums to elements `step` apart, in another dtype than theirs or fewer lanes than a vector's. Not inlined, nor
// copied for some of its callers: there are many, and what it does is long.
template <class T>
__attribute__((noinline, noclone)) void put_sums(const DepthwiseOutput& to, void* output, int64_t element, int64_t step,
                                                 const T* sums, int count) {
  for (int v = 0; v < count; ++v, element += step) {
    const Vector<T> value = load(sums + v * kLanes<T>);
    if constexpr (sizeof(T) == 4) {
      if (to.dtype == ScalarType::BFloat16) {
        store_rounded(static_cast<BFloat16*>(output) + element, value, to.lanes);
        continue;
      }
      if (to.dtype == ScalarType::Half) {
        store_rounded(static_cast<Half*>(output) + element, value, to.lanes);
        continue;
      }
    }
    store_rounded(static_cast<T*>(output) + element, value, to.lanes);
  }
}

template <class T, int V>
UNFOLDCONV_INLINE void put(const DepthwiseOutput& to, void* output, int64_t element, int64_t step,
                           const Vector<T> (&sum)[V]) {
  if (to.lanes == kLanes<T> && to.bytes == sizeof(T)) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(static_cast<T*>(output) + element + v * step, sum[v]);
  } else {
    alignas(kVectorBytes) T sums[V * kLanes<T>];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(sums + v * kLanes<T>, sum[v]);
    put_sums<T>(to, output, element, step, sums, V);
  }
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
