// Elements of any type as the sums of the depthwise kernels, and back.
#pragma once

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// The vector of sums that `count` elements of any type make, 0 beyond; nothing else is read. And back.
template <class T>
UNFOLDCONV_INLINE Vector<T> load_widened(const T* from) {
  return load(from);
}
UNFOLDCONV_INLINE Vector<float> load_widened(const BFloat16* from) { return widen(from); }
UNFOLDCONV_INLINE Vector<float> load_widened(const Half* from) { return widen(from); }
template <class T>
UNFOLDCONV_INLINE Vector<Accumulator<T>> load_widened(const T* from, int64_t count) {
#if UNFOLDCONV_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, BFloat16>)
    return (Vector<float>)(load_lanes(reinterpret_cast<const uint16_t*>(from), 0, static_cast<int>(count)) << 16);
#endif
  if (count == kLanes<Accumulator<T>>) return load_widened(from);
  if constexpr (sizeof(T) == sizeof(Accumulator<T>)) {
    return load_lanes(from, 0, static_cast<int>(count));
  } else {
    alignas(kVectorBytes) uint16_t part[kLanes<float>] = {};
    for (int64_t i = 0; i < count; ++i) __builtin_memcpy(part + i, from + i, sizeof(T));
    return load_widened(reinterpret_cast<const T*>(part));
  }
}

template <class T>
UNFOLDCONV_INLINE void store_rounded(T* to, Vector<T> value) {
  store(to, value);
}
UNFOLDCONV_INLINE void store_rounded(BFloat16* to, Vector<float> value) { narrow(value, to); }
UNFOLDCONV_INLINE void store_rounded(Half* to, Vector<float> value) { narrow(value, to); }
template <class T>
UNFOLDCONV_INLINE void store_rounded(T* to, Vector<Accumulator<T>> value, int64_t count) {
  if (count == kLanes<Accumulator<T>>) return store_rounded(to, value);
  if constexpr (sizeof(T) == sizeof(Accumulator<T>)) {
    store_lanes(to, value, static_cast<int>(count));
  } else {
    alignas(kVectorBytes) uint16_t part[kLanes<float>];
    store_rounded(reinterpret_cast<T*>(part), value);
    for (int64_t i = 0; i < count; ++i) __builtin_memcpy(to + i, part + i, sizeof(T));
  }
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
