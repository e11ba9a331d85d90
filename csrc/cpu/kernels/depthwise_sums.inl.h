// The sums of the depthwise engine: a vector holds the same position of neighbouring channels.
//
// All of them are sum[v] += a[j] * b[j + v], v < V, kept in registers: an element of `a` is loaded once for V products.
//   correlate    v counts positions of a row; a is the weight and b the image, or the other way round where the kernel
//                reaches beyond the image at both ends, so that no product with the padding is made
//   weight_sums  v counts taps of a kernel row; a is grad_output, b the image
#pragma once

#include "cpu/kernels/depthwise_window.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// Sums that fit the registers beside `a`. Where the distance of neighbours is not known to the compiler, their
// addresses take registers too.
constexpr int kMostSums = 14;
constexpr int kMostSumsAnyStep = 4;
constexpr auto kSums = std::make_integer_sequence<int, kMostSums>{};
constexpr auto kSumsAnyStep = std::make_integer_sequence<int, kMostSumsAnyStep>{};

// sum[v] += a[j * a_step] * b[j * b_step + v * distance] for j < count; distance is Step vectors, or any if Step is 0.
// Count is count, or 0 for any; then b_step is one vector.
template <class T, int V, int Step, int Count = 0>
UNFOLDCONV_INLINE void multiply_add(Vector<T> (&sum)[V], int64_t count, const T* a, int64_t a_step, const T* b,
                                    int64_t b_step, int64_t any_distance) {
  const int64_t distance = Step ? Step * kLanes<T> : any_distance;
  if constexpr (Count > 0) {
#pragma GCC unroll 16
    for (int j = 0; j < Count; ++j) {
      const Vector<T> factor = load(a + j * a_step);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[v] += factor * load(b + (j + v * Step) * kLanes<T>);
    }
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    const Vector<T> factor = load(a);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[v] += factor * load(b + v * distance);
    a += a_step;
    b += b_step;
  }
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
