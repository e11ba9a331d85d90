// Stands in for csrc/cuda/shared/intrinsics.cuh where kernels run on the CPU: the same functions in plain C++. What a
// fragment holds stands there, and so does the include of scalar.h, which may be that of an edited copy.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "async_copies.h"
#include "cuda_runtime.h"

#ifndef EMULATED_ARCHITECTURE
#define EMULATED_ARCHITECTURE 800
#endif

namespace unfoldconv::cuda {

constexpr int kArchitecture = EMULATED_ARCHITECTURE;

inline int forget(int value) { return value; }

// --- copies that do not pass through registers -----------------------------------------------------------------------

template <int Bytes>
void cp_async(void* shared, const void* global, int source_bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  emulator::async_copies().issue(shared, global, Bytes, source_bytes);
}

inline void cp_async_commit() { emulator::async_copies().commit(); }

template <int Groups>
void cp_async_wait() {
  emulator::async_copies().wait(Groups);
}

// --- fragments of matrices from shared memory ------------------------------------------------------------------------

namespace emulated {

constexpr unsigned kAllLanes = ~0u;

struct Row {
  uint16_t value[8];
};

// Of all lanes, what each brought; every one of the 32 must take part.
template <class T>
std::shared_ptr<const emulator::Lanes> exchange(const char* name, const T& value, Where where) {
  if (blockDim.x * blockDim.y * blockDim.z % 32 != 0)
    throw std::runtime_error(std::string(name) + " must be called by whole warps");
  return emulator::warp_exchange(name, kAllLanes, value, where);
}

}  // namespace emulated

template <int Count, bool Transposed = false>
void ldmatrix(uint32_t (&registers)[Count], const void* row, Where where = Where::current()) {
  static_assert(Count == 1 || Count == 2 || Count == 4);
  using emulated::Row;
  const int lane = emulator::lane();
  Row own{};
  if (lane < 8 * Count) {
    emulator::check_aligned("ldmatrix", row, sizeof(Row));
    emulator::check_shared("ldmatrix", row, sizeof(Row));
    std::memcpy(&own, row, sizeof(Row));
  }
  const auto lanes = emulated::exchange("ldmatrix", own, where);
  const int group = lane / 4, pair = lane % 4 * 2;
  const auto element = [&](int matrix, int r, int c) -> uint32_t {
    return lanes->template get<Row>(8 * matrix + r).value[c];
  };
  for (int i = 0; i < Count; ++i)
    registers[i] = Transposed ? element(i, pair, group) | element(i, pair + 1, group) << 16
                              : element(i, group, pair) | element(i, group, pair + 1) << 16;
}

// --- products of fragments -------------------------------------------------------------------------------------------

namespace emulated {

template <class T>
float element(uint32_t pair, int half) {
  const auto bits = static_cast<uint16_t>(pair >> 16 * half);
  return static_cast<float>(std::bit_cast<T>(bits));
}

inline float tf32_element(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }  // the rest is not read

struct Operands {
  uint32_t left[4], right[2];
};

// One lane's part of a product of 16 rows and 8 columns: left(lane, i, k) and right(lane, k) give the terms, i being
// 0 for row g and 1 for row g + 8.
template <class Left, class Right>
void multiply(float (&upper)[2], float (&lower)[2], int depth, const Left& left, const Right& right) {
  const int lane = emulator::lane(), group = lane / 4;
  for (int k = 0; k < depth; ++k) {
    const float above = left(group, 0, k), below = left(group, 1, k);
    for (int column = 0; column < 2; ++column) {
      const float factor = right(2 * (lane % 4) + column, k);  // of the group whose lanes hold the column
      upper[column] += above * factor;
      lower[column] += below * factor;
    }
  }
}

// With elements in pairs: k is in register 2 * (k / 8) + i of lane k % 8 / 2 of the group.
template <class T>
void multiply_pairs(const char* name, float (&upper)[2], float (&lower)[2], const Operands& own, int depth,
                    Where where) {
  const auto lanes = exchange(name, own, where);
  const auto of = [&](int group, int k) { return lanes->template get<Operands>(4 * group + k % 8 / 2); };
  multiply(
      upper, lower, depth,
      [&](int group, int i, int k) { return element<T>(of(group, k).left[2 * (k / 8) + i], k % 2); },
      [&](int group, int k) { return element<T>(of(group, k).right[k / 8], k % 2); });
}

}  // namespace emulated

template <class T>
void mma_m16n8k16(float (&upper)[2], float (&lower)[2], const uint32_t (&left)[4], const uint32_t (&right)[2],
                  Where where = Where::current()) {
  static_assert(std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>);
  emulated::multiply_pairs<T>("mma_m16n8k16", upper, lower,
                              {{left[0], left[1], left[2], left[3]}, {right[0], right[1]}}, 16, where);
}

inline void mma_m16n8k8_f16(float (&upper)[2], float (&lower)[2], uint32_t left_upper, uint32_t left_lower,
                            uint32_t right, Where where = Where::current()) {
  emulated::multiply_pairs<Half>("mma_m16n8k8_f16", upper, lower, {{left_upper, left_lower, 0, 0}, {right, 0}}, 8,
                                 where);
}

inline void mma_m16n8k8_tf32(float (&upper)[2], float (&lower)[2], const uint32_t (&left)[4],
                             const uint32_t (&right)[2], Where where = Where::current()) {
  using emulated::Operands;
  const auto lanes = emulated::exchange("mma_m16n8k8_tf32",
                                        Operands{{left[0], left[1], left[2], left[3]}, {right[0], right[1]}}, where);
  const auto of = [&](int group, int k) { return lanes->template get<Operands>(4 * group + k % 4); };
  emulated::multiply(
      upper, lower, 8,
      [&](int group, int i, int k) { return emulated::tf32_element(of(group, k).left[2 * (k / 4) + i]); },
      [&](int group, int k) { return emulated::tf32_element(of(group, k).right[k / 4]); });
}

inline uint32_t to_tf32(uint32_t value) {
  const bool finite = (value & 0x7f800000u) != 0x7f800000u;
  return finite ? (value + 0x1000u) & 0xffffe000u : value;
}

inline void mma_m8n8k4(double (&sum)[2], double left, double right, Where where = Where::current()) {
  struct Pair {
    double left, right;
  };
  const auto lanes = emulated::exchange("mma_m8n8k4", Pair{left, right}, where);
  const int lane = emulator::lane(), group = lane / 4;
  for (int column = 0; column < 2; ++column)
    for (int k = 0; k < 4; ++k)
      sum[column] += lanes->template get<Pair>(4 * group + k).left *
                     lanes->template get<Pair>(4 * (2 * (lane % 4) + column) + k).right;
}

}  // namespace unfoldconv::cuda
