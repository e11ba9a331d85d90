// The sums of the depthwise engine for groups of 2, 4 or 8 channels: a vector holds the same position of neighbouring
// channels, whole groups of them, and meets each channel of every group as a vector that has it in all lanes of the
// group ("spread"). So no weight between two groups is multiplied, not even a zero.
//
//   correlate    a spread vector is shared by all taps of a kernel row that meet it at one of the V positions
//   weight_sums  and by all taps of a kernel row
#pragma once

#include "cpu/kernels/depthwise_window.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// Calls f(std::integral_constant<int, i>{}) for i < Count, in order.
template <class F, int... I>
UNFOLDCONV_INLINE void for_each_constant(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int Count, class F>
UNFOLDCONV_INLINE void for_each_constant(const F& f) {
  for_each_constant(f, std::make_integer_sequence<int, Count>{});
}

// Every lane has the element at `from` that is channel `Channel` of its group of `Channels`.
template <int Channels, int Channel, class T, int... I>
UNFOLDCONV_INLINE Vector<T> spread(const T* from, std::integer_sequence<int, I...>) {
  using S = Shuffle<T, kLanes<T>>;
  const Vector<T> all = load(from);
  return S::shuffled(all, all, typename S::Indices{I / Channels * Channels + Channel...});
}
template <int Channels, int Channel, class T>
UNFOLDCONV_INLINE Vector<T> spread(const T* from) {
  // Read so, it takes no shuffle.
  if constexpr (Channels == kLanes<T>) return broadcast(from[Channel]);
  return spread<Channels, Channel>(from, std::make_integer_sequence<int, kLanes<T>>{});
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
