// The matrix product of one block: sum [M, N] = left [M, depth] @ right [N, depth]^T, tile by tile through shared
// memory.
//
// A chunk of the depth is 64 bytes of every row of both operands, whatever the type: 4 pieces of 16 bytes. Loaders
// bring the rows of a chunk into a slot of shared memory; warps multiply the chunk in one slot while the next ones are
// on their way to the others. Each warp owns a part [kWarpM, 32] of the sum, and lane 4 g + t of it the elements (8 i +
// g, 8 j + 2 t) and the next column of each, for all i and j: the fragments of every mma are that, and the plain
// multiply-and-add (FFMA) keeps to it. The order in which an element is summed follows from the depth alone.
#pragma once

#include "cuda/shared/index.cuh"
#include "cuda/shared/intrinsics.cuh"
#include "cuda/shared/launch.cuh"

namespace unfoldconv::cuda {

constexpr int kPieceBytes = 16;
constexpr int kPieces = 4;  // of a row in a chunk
constexpr int kRowBytes = kPieces * kPieceBytes;
constexpr int kWarpN = 32;

// 16-byte copies that go on during a product; without them pieces wait in registers.
constexpr bool kHasAsyncCopies = kArchitecture >= 800;

template <class T>
struct alignas(kPieceBytes) Piece {
  static constexpr int kCount = kPieceBytes / sizeof(T);
  T value[kCount];
};

template <int WarpM, int WarpsM, int WarpsN>
struct TileShape {
  static constexpr int kWarpM = WarpM, kWarpsN = WarpsN;
  static constexpr int kM = WarpM * WarpsM, kN = kWarpN * WarpsN;
  static constexpr int kThreads = 32 * WarpsM * WarpsN;
  static constexpr int kSlotBytes = (kM + kN) * kRowBytes;
  // As many slots as the 48 KiB that every architecture has hold, and no more than copies need to be ahead.
  static constexpr int kSlots = kHasAsyncCopies ? std::min(4, (48 << 10) / kSlotBytes) : 2;
};

// Where a piece of a row lies in a slot. Pieces change places from one pair of rows to the next, so that neither the
// same piece of 8 neighbouring rows nor the 4 pieces of 2 rows meet in a memory bank.
__device__ __forceinline__ int piece_offset(int row, int piece) {
  return row * kRowBytes + (piece ^ (row / 2 % kPieces)) * kPieceBytes;
}

// How the rows of an operand lie in a slot, and how a warp reads those from its first one on: here one row after the
// other, as loaders bring them where terms are neighbours in memory. depth_major.cuh has the other way.
template <class T, int Rows>
class RowMajor {
 public:
  static constexpr int kBytes = Rows * kRowBytes;

  __device__ __forceinline__ RowMajor(const unsigned char* slot, int first_row) : rows_(slot + first_row * kRowBytes) {}

  // Matrices of 8 rows and a piece, as fragments of mma: (row, piece), (row + 8, piece), (row, piece + 1) and (row + 8,
  // piece + 1), or without RowsFirst the second one and the third one in each other's place.
  template <bool RowsFirst>
  __device__ __forceinline__ void fragments(uint32_t (&registers)[4], int row, int piece) const {
    const int lane = threadIdx.x % 32, inner = lane / 8 % 2, outer = lane / 16;
    ldmatrix(registers, rows_ + piece_offset(row + lane % 8 + 8 * (RowsFirst ? inner : outer),
                                             piece + (RowsFirst ? outer : inner)));
  }
  __device__ __forceinline__ Piece<T> piece(int row, int piece) const {
    return *reinterpret_cast<const Piece<T>*>(rows_ + piece_offset(row, piece));
  }
  __device__ __forceinline__ T element(int row, int k) const {
    constexpr int count = Piece<T>::kCount;
    return *reinterpret_cast<const T*>(rows_ + piece_offset(row, k / count) + k % count * sizeof(T));
  }

 private:
  const unsigned char* rows_;
};

// --- products of a chunk ---------------------------------------------------------------------------------------------

enum class Instruction { mma_16bit, mma_tf32, mma_f64, fma };

template <class T, bool Tf32>
constexpr Instruction instruction_of() {
  if (std::is_same_v<T, Half>) return Instruction::mma_16bit;
  if (kArchitecture < 800) return Instruction::fma;
  if (std::is_same_v<T, BFloat16>) return Instruction::mma_16bit;
  if (std::is_same_v<T, double>) return Instruction::mma_f64;
  return Tf32 ? Instruction::mma_tf32 : Instruction::fma;
}

// For __launch_bounds__: of how many blocks a multiprocessor must have room for the registers. FFMA needs more of them,
// and so do operands for tf32 that come element by element and not in pieces.
template <class T, bool Tf32, class Shape, bool Pieces, Instruction Which = instruction_of<T, Tf32>()>
constexpr int kGemmBlocks = kArchitecture >= 800 && Shape::kThreads == 256 && Which != Instruction::fma &&
                                    (Pieces || Which != Instruction::mma_tf32)
                                ? 2
                                : 1;

template <class T, int WarpM>
using WarpSum = Accumulator<T>[WarpM / 8][kWarpN / 8][2];

// sum += left @ right^T over one piece each by FFMA.
template <class T, int WarpM, int M, int N>
__device__ __forceinline__ void multiply_by_fma(WarpSum<T, WarpM>& sum, const RowMajor<T, M>& left,
                                                const RowMajor<T, N>& right) {
  using Sum = Accumulator<T>;
  const int group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
#pragma unroll 1  // it is long enough as it is, and the wheel has many of it
  for (int piece = 0; piece < kPieces; ++piece) {
    Piece<T> a[WarpM / 8];
#pragma unroll
    for (int i = 0; i < WarpM / 8; ++i) a[i] = left.piece(8 * i + group, piece);
#pragma unroll
    for (int j = 0; j < kWarpN / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Piece<T> b = right.piece(8 * j + pair + e, piece);
#pragma unroll
        for (int k = 0; k < Piece<T>::kCount; ++k)
#pragma unroll
          for (int i = 0; i < WarpM / 8; ++i) sum[i][j][e] += convert<Sum>(a[i].value[k]) * convert<Sum>(b.value[k]);
      }
    }
  }
}

template <class T, Instruction Which>
__device__ __forceinline__ void multiply_fragments(float (&upper)[2], float (&lower)[2], const uint32_t (&a)[4],
                                                   const uint32_t (&b)[2]) {
  if constexpr (Which == Instruction::mma_tf32) {
    mma_m16n8k8_tf32(upper, lower, a, b);
  } else if constexpr (kArchitecture >= 800) {
    mma_m16n8k16<T>(upper, lower, a, b);
  } else {
    mma_m16n8k8_f16(upper, lower, a[0], a[1], b[0]);
    mma_m16n8k8_f16(upper, lower, a[2], a[3], b[1]);
  }
}

// The same by mma over pairs of pieces, which are 16 elements of 16 bits or 8 of tf32.
template <class T, Instruction Which, int WarpM, class Left, class Right>
__device__ __forceinline__ void multiply_by_mma(WarpSum<T, WarpM>& sum, const Left& left, const Right& right) {
#pragma unroll
  for (int piece = 0; piece < kPieces; piece += 2) {
    uint32_t b[kWarpN / 8][2];
#pragma unroll
    for (int j = 0; j < kWarpN / 8; j += 2) {
      uint32_t matrices[4];  // (rows 8 j.., piece), (rows 8 j.., piece + 1), and both of the next 8 rows
      right.template fragments<false>(matrices, 8 * j, piece);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        b[j + i / 2][i % 2] = Which == Instruction::mma_tf32 ? to_tf32(matrices[i]) : matrices[i];
    }
#pragma unroll
    for (int i = 0; i < WarpM / 8; i += 2) {
      uint32_t a[4];  // (rows 8 i.., piece), (the next 8 rows, piece), and both of piece + 1
      left.template fragments<true>(a, 8 * i, piece);
      if constexpr (Which == Instruction::mma_tf32)
#pragma unroll
        for (int k = 0; k < 4; ++k) a[k] = to_tf32(a[k]);
#pragma unroll
      for (int j = 0; j < kWarpN / 8; ++j) multiply_fragments<T, Which>(sum[i][j], sum[i + 1][j], a, b[j]);
    }
  }
}

template <int WarpM, class Left, class Right>
__device__ __forceinline__ void multiply_by_mma_f64(WarpSum<double, WarpM>& sum, const Left& left, const Right& right) {
  const int group = threadIdx.x % 32 / 4, term = threadIdx.x % 4;
#pragma unroll
  for (int k = 0; k < kRowBytes / static_cast<int>(sizeof(double)); k += 4) {
    double b[kWarpN / 8];
#pragma unroll
    for (int j = 0; j < kWarpN / 8; ++j) b[j] = right.element(8 * j + group, k + term);
#pragma unroll
    for (int i = 0; i < WarpM / 8; ++i) {
      const double a = left.element(8 * i + group, k + term);
#pragma unroll
      for (int j = 0; j < kWarpN / 8; ++j) mma_m8n8k4(sum[i][j], a, b[j]);
    }
  }
}

// sum += left @ right^T over a chunk, for the rows of one warp.
template <class T, bool Tf32, int WarpM, class Left, class Right>
__device__ __forceinline__ void multiply_chunk(WarpSum<T, WarpM>& sum, const Left& left, const Right& right) {
  constexpr Instruction which = instruction_of<T, Tf32>();
  if constexpr (which == Instruction::fma) {
    multiply_by_fma<T, WarpM>(sum, left, right);
  } else if constexpr (which == Instruction::mma_f64) {
    multiply_by_mma_f64<WarpM>(sum, left, right);
  } else {
    multiply_by_mma<T, which, WarpM>(sum, left, right);
  }
}

// --- all chunks ------------------------------------------------------------------------------------------------------

// A loader has fetch(chunk, rows), which begins to bring the rows of a chunk to shared memory, and put(rows), which
// ends it where asynchronous copies do not do that by themselves. Both are called by all threads of the block. The
// chunks are first, ..., end - 1.
template <class T, bool Tf32, class Shape, template <class, int> class Layout = RowMajor, class Left, class Right>
__device__ __forceinline__ void multiply_chunks(WarpSum<T, Shape::kWarpM>& sum, unsigned char* memory, int end,
                                                Left& left, Right& right, int first = 0) {
  using LeftRows = Layout<T, Shape::kM>;
  using RightRows = Layout<T, Shape::kN>;
  static_assert(LeftRows::kBytes + RightRows::kBytes == Shape::kSlotBytes);
  constexpr int ahead = Shape::kSlots - 1, right_rows = LeftRows::kBytes;
  const int warp = threadIdx.x / 32;
  const int warp_left = warp / Shape::kWarpsN * Shape::kWarpM, warp_right = warp % Shape::kWarpsN * kWarpN;
  const auto slot = [&](int index) { return memory + index * Shape::kSlotBytes; };

#pragma unroll
  for (int i = 0; i < ahead; ++i) {
    if (first + i < end) {
      left.fetch(first + i, slot(i));
      right.fetch(first + i, slot(i) + right_rows);
      left.put(slot(i));
      right.put(slot(i) + right_rows);
    }
    if constexpr (kHasAsyncCopies) cp_async_commit();
  }
  int current = 0;
  for (int chunk = first; chunk < end; ++chunk) {
    // Of one group for each chunk, that of this chunk is complete where all but the latest `ahead` - 1 are.
    if constexpr (kHasAsyncCopies) cp_async_wait<ahead - 1>();
    // Everybody's part of this chunk has arrived, and everybody has done with the slot that is filled next.
    __syncthreads();
    const bool more = chunk + ahead < end;
    const int next = (current == 0 ? Shape::kSlots : current) - 1;
    if (more) {
      left.fetch(chunk + ahead, slot(next));
      right.fetch(chunk + ahead, slot(next) + right_rows);
    }
    if constexpr (kHasAsyncCopies) cp_async_commit();
    multiply_chunk<T, Tf32, Shape::kWarpM>(sum, LeftRows(slot(current), warp_left),
                                           RightRows(slot(current) + right_rows, warp_right));
    if (more) {
      left.put(slot(next));
      right.put(slot(next) + right_rows);
    }
    current = current + 1 == Shape::kSlots ? 0 : current + 1;
  }
  __syncthreads();  // whoever uses the memory next finds nobody reading
}

// One piece on its way from global to shared memory, or zeros where `inside` is false.
template <class T>
class MovedPiece {
 public:
  __device__ __forceinline__ void fetch(unsigned char* to, const T* from, bool inside, const T* any) {
    if constexpr (kHasAsyncCopies) {
      cp_async<kPieceBytes>(to, inside ? from : any, inside ? kPieceBytes : 0);
    } else {
      piece_ = inside ? *reinterpret_cast<const Piece<T>*>(from) : Piece<T>{};
    }
  }
  __device__ __forceinline__ void put([[maybe_unused]] unsigned char* to) const {
    if constexpr (!kHasAsyncCopies) *reinterpret_cast<Piece<T>*>(to) = piece_;
  }

 private:
  Piece<T> piece_;
};

// Loads rows that lie in memory as a tile wants them: whole pieces one behind the other, `pieces` of them.
template <class T, int Rows, int Threads>
class DenseRows {
  static constexpr int kCount = Rows * kPieces / Threads, kStep = Threads / kPieces;

 public:
  // row_of(row) is where a row of the tile begins, or null for one that is not there; `any` is memory that is.
  template <class F>
  __device__ __forceinline__ DenseRows(int pieces, const T* any, F&& row_of) : pieces_(pieces), any_(any) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) begin_[i] = row_of(row(i));
  }
  __device__ __forceinline__ void fetch(int chunk, unsigned char* rows) {
    const int piece = chunk * kPieces + threadIdx.x % kPieces;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      moved_[i].fetch(rows + piece_offset(row(i), threadIdx.x % kPieces), begin_[i] + piece * Piece<T>::kCount,
                      begin_[i] != nullptr && piece < pieces_, any_);
  }
  __device__ __forceinline__ void put(unsigned char* rows) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) moved_[i].put(rows + piece_offset(row(i), threadIdx.x % kPieces));
  }

 private:
  __device__ __forceinline__ static int row(int i) { return threadIdx.x / kPieces + i * kStep; }

  int pieces_;
  const T *any_, *begin_[kCount];
  MovedPiece<T> moved_[kCount];
};

}  // namespace unfoldconv::cuda
