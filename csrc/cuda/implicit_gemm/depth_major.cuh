// The other way in which rows of an operand lie in a slot (gemm_tile.cuh): all rows at one place of the depth, then all
// at the next one. Loaders bring them like that, in whole pieces, where rows are neighbours in memory; only what a warp
// reads of them is transposed.
//
//   slot   [depth, rows] of a chunk, kRowBytes / sizeof(T) deep
#pragma once

#include "cuda/implicit_gemm/gemm_tile.cuh"

namespace unfoldconv::cuda {

template <class T, int Rows>
class DepthMajor {
  static constexpr int kCount = Piece<T>::kCount, kPitch = Rows * static_cast<int>(sizeof(T));

 public:
  static constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(T)), kBytes = kDepth * kPitch;
  static constexpr int kPiecesAcross = kPitch / kPieceBytes;  // rows at one place of the depth, in pieces
  static constexpr int kPlaces = 8;                           // pieces that change places with each other
  static_assert(kPiecesAcross % kPlaces == 0);

  // Where a piece of rows lies in a slot. Pieces change places from one k to the next, so that neither the same piece
  // at 8 neighbouring k (16 bits) nor two neighbours of it at 4 of them (32 and 64 bits) meet in a memory bank.
  __device__ __forceinline__ static int offset(int k, int piece) {
    return k * kPitch + (piece ^ (k % 4 * 2 + k / 4 % 2)) * kPieceBytes;
  }

  // What is left of the first row behind whole groups of places is known to be 0 for all but 16 bits.
  __device__ __forceinline__ DepthMajor(const unsigned char* slot, int first_row)
      : rows_(slot + first_row / (kPlaces * kCount) * kPlaces * kPieceBytes),
        first_row_(first_row % (kPlaces * kCount)) {}

  // As those of RowMajor. Registers of 32 bits have no instruction that turns a matrix.
  template <bool RowsFirst>
  __device__ __forceinline__ void fragments(uint32_t (&registers)[4], int row, int piece) const {
    const int lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
      const int inner = lane / 8 % 2, outer = lane / 16;
      const int k = (piece + (RowsFirst ? outer : inner)) * kCount + lane % 8;
      ldmatrix<4, true>(registers, at(row + 8 * (RowsFirst ? inner : outer), k));
    } else {
      static_assert(sizeof(T) == 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int inner = i % 2, outer = i / 2;
        const int k = (piece + (RowsFirst ? outer : inner)) * kCount + lane % 4;
        registers[i] = *reinterpret_cast<const uint32_t*>(at(row + 8 * (RowsFirst ? inner : outer) + lane / 4, k));
      }
    }
  }
  __device__ __forceinline__ T element(int row, int k) const { return *reinterpret_cast<const T*>(at(row, k)); }

  struct alignas(2 * sizeof(T)) Pair {
    T value[2];
  };
  // Of an even row and the next one.
  __device__ __forceinline__ Pair pair(int row, int k) const { return *reinterpret_cast<const Pair*>(at(row, k)); }

 private:
  __device__ __forceinline__ const unsigned char* at(int row, int k) const {
    const int from_first = first_row_ + row;
    return rows_ + offset(k, from_first / kCount) + from_first % kCount * static_cast<int>(sizeof(T));
  }

  const unsigned char* rows_;
  int first_row_;
};

// sum += left @ right^T over a chunk by FFMA.
template <class T, int WarpM, int M, int N>
__device__ __forceinline__ void multiply_by_fma(WarpSum<T, WarpM>& sum, const DepthMajor<T, M>& left,
                                                const DepthMajor<T, N>& right) {
  using Sum = Accumulator<T>;
  const int group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
#pragma unroll 4  // as much as one piece of each row would be
  for (int k = 0; k < DepthMajor<T, M>::kDepth; ++k) {
    Sum a[WarpM / 8];
#pragma unroll
    for (int i = 0; i < WarpM / 8; ++i) a[i] = convert<Sum>(left.element(8 * i + group, k));
#pragma unroll
    for (int j = 0; j < kWarpN / 8; ++j) {
      const auto b = right.pair(8 * j + pair, k);
#pragma unroll
      for (int e = 0; e < 2; ++e)
#pragma unroll
        for (int i = 0; i < WarpM / 8; ++i) sum[i][j][e] += a[i] * convert<Sum>(b.value[e]);
    }
  }
}

}  // namespace unfoldconv::cuda
