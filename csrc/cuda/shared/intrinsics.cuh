// The instructions that have no name in CUDA C++, by function. tests/cuda/emulator/emulated_intrinsics.h stands in for
// them where kernels run on the CPU: an instruction that a kernel needs has its function in both.
//
// The fragments of a warp's matrices (PTX ISA, "Matrix Fragments"), with g = lane / 4 and t = lane % 4. Elements of 16
// bits lie in pairs in a register, the even one in the lower half.
//
//   product, sum   m16n8   rows g (upper) and g + 8 (lower), columns 2t and 2t + 1
//                  m8n8    row g, columns 2t and 2t + 1
//   left    16 x 16, 16 bits   (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each with the next column
//           16 x 8, 16 bits    (g, 2t), (g + 8, 2t), each with the next column
//           16 x 8, tf32       (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)
//           8 x 4, f64         (g, t)
//   right   the same of its transpose, rows g only
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "problem/scalar.h"

#ifndef __CUDACC__
#include "emulated_intrinsics.h"
#else

namespace unfoldconv::cuda {

#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 800;  // host code asks for nothing that depends on it
#endif

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The value, of which the compiler then knows nothing: what it has derived from it before is computed anew where it is
// needed again, instead of being kept in registers for so long.
__device__ __forceinline__ int forget(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// --- copies that do not pass through registers -----------------------------------------------------------------------

// Begins to copy source_bytes (0 or Bytes; the rest becomes zero) to shared memory. Both addresses are multiples of
// Bytes. The copy is seen by this thread after it has waited for it, and by others after a barrier behind that.
template <int Bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int source_bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  if constexpr (Bytes == 16) {  // past the first-level cache, from which nobody reads it again
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(Bytes),
                 "r"(source_bytes)
                 : "memory");
  }
}

// Ends a group: the copies that this thread has begun since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most Groups of the groups of this thread, the latest, are under way.
template <int Groups>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
}

// --- fragments of matrices from shared memory ------------------------------------------------------------------------

// Reads Count matrices of 8 rows of 16 bytes; lane 8i + r has the address of row r of matrix i. Register i is the
// fragment (g, t) in units of 4 bytes of matrix i, or with Transposed the pair (2t, g), (2t + 1, g) in units of 2.
template <int Count, bool Transposed = false>
__device__ __forceinline__ void ldmatrix(uint32_t (&registers)[Count], const void* row) {
  static_assert(Count == 1 || Count == 2 || Count == 4);
  const uint32_t address = shared_address(row);
  if constexpr (Count == 1 && !Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(registers[0]) : "r"(address) : "memory");
  } else if constexpr (Count == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(registers[0])
                 : "r"(address)
                 : "memory");
  } else if constexpr (Count == 2 && !Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(address)
                 : "memory");
  } else if constexpr (Count == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(registers[0]), "=r"(registers[1])
                 : "r"(address)
                 : "memory");
  } else if constexpr (!Transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(address)
                 : "memory");
  }
}

// --- products of fragments -------------------------------------------------------------------------------------------

// sum += left [16, 16] @ right [16, 8], summed in float.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&upper)[2], float (&lower)[2], const uint32_t (&left)[4],
                                             const uint32_t (&right)[2]) {
  if constexpr (std::is_same_v<T, Half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  } else {
    static_assert(std::is_same_v<T, BFloat16>);
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
  }
}

// sum += left [16, 8] @ right [8, 8] of float16, summed in float: what sm_75 has.
__device__ __forceinline__ void mma_m16n8k8_f16(float (&upper)[2], float (&lower)[2], uint32_t left_upper,
                                                uint32_t left_lower, uint32_t right) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
      : "r"(left_upper), "r"(left_lower), "r"(right));
}

// sum += left [16, 8] @ right [8, 8] of tf32, summed in float.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&upper)[2], float (&lower)[2], const uint32_t (&left)[4],
                                                 const uint32_t (&right)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}

// Rounds the bits of a float to tf32, 10 bits of fraction, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(uint32_t value) {
  uint32_t result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(__uint_as_float(value)));
  return result;
}

// sum += left [8, 4] @ right [4, 8] in double.
__device__ __forceinline__ void mma_m8n8k4(double (&sum)[2], double left, double right) {
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(sum[0]), "+d"(sum[1])
      : "d"(left), "d"(right));
}

}  // namespace unfoldconv::cuda

#endif
