// The kernel of patch_kernels.h for a pair of types.
#pragma once

#include <type_traits>

#include "cpu/kernels/kernels.h"

namespace unfoldconv::cpu {

// From a type to itself, as bytes are moved, or between float and a 16-bit float.
template <class From, class To>
Move<From, To> move_kernel() {
  const PatchKernels& patches = kernels().patches;
  if constexpr (std::is_same_v<From, uint8_t>)
    return patches.move_1;
  else if constexpr (std::is_same_v<From, uint16_t>)
    return patches.move_2;
  else if constexpr (std::is_same_v<From, uint32_t>)
    return patches.move_4;
  else if constexpr (std::is_same_v<From, uint64_t>)
    return patches.move_8;
  else if constexpr (std::is_same_v<From, Bytes16>)
    return patches.move_16;
  else if constexpr (std::is_same_v<From, Half>)
    return patches.widen_half;
  else if constexpr (std::is_same_v<From, BFloat16>)
    return patches.widen_bfloat16;
  else if constexpr (std::is_same_v<To, Half>)
    return patches.narrow_half;
  else
    return patches.narrow_bfloat16;
}

template <class T>
Add<T> add_kernel() {
  const PatchKernels& patches = kernels().patches;
  if constexpr (std::is_same_v<T, Bool>)
    return patches.add_bool;
  else if constexpr (std::is_same_v<T, uint8_t>)
    return patches.add_1;
  else if constexpr (std::is_same_v<T, uint16_t>)
    return patches.add_2;
  else if constexpr (std::is_same_v<T, uint32_t>)
    return patches.add_4;
  else if constexpr (std::is_same_v<T, uint64_t>)
    return patches.add_8;
  else if constexpr (std::is_same_v<T, Half>)
    return patches.add_half;
  else if constexpr (std::is_same_v<T, BFloat16>)
    return patches.add_bfloat16;
  else if constexpr (std::is_same_v<T, float>)
    return patches.add_float;
  else
    return patches.add_double;
}

template <class T>
Sum<T> sum_kernel() {
  const PatchKernels& patches = kernels().patches;
  if constexpr (std::is_same_v<T, Bool>)
    return patches.sum_bool;
  else if constexpr (std::is_same_v<T, uint8_t>)
    return patches.sum_1;
  else if constexpr (std::is_same_v<T, uint16_t>)
    return patches.sum_2;
  else if constexpr (std::is_same_v<T, uint32_t>)
    return patches.sum_4;
  else if constexpr (std::is_same_v<T, uint64_t>)
    return patches.sum_8;
  else if constexpr (std::is_same_v<T, Half>)
    return patches.sum_half;
  else if constexpr (std::is_same_v<T, BFloat16>)
    return patches.sum_bfloat16;
  else if constexpr (std::is_same_v<T, float>)
    return patches.sum_float;
  else
    return patches.sum_double;
}

}  // namespace unfoldconv::cpu
