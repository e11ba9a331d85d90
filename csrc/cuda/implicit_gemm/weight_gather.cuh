// The operands of weight_gemm.cuh however they lie in memory: row after row in shared memory, gathered element by
// element along their innermost axis, or, where positions are contiguous in both memory and the product, in pieces.
#pragma once

#include "cuda/implicit_gemm/weight_parameters.cuh"

namespace unfoldconv::cuda {

// Rows of either operand.
template <class T, int Rows, int Threads>
class GatheredRows {
  static constexpr int kDepth = kRowBytes / sizeof(T);  // elements of a row in a chunk
  static constexpr int kCount = Rows * kDepth / Threads, kPiece = Piece<T>::kCount;
  static constexpr bool kByElement = kHasAsyncCopies && sizeof(T) >= 4;  // copies of one element

 public:
  // row_at(row) and position_at(k) tell what element(row, position) needs, of a row and a position of the chunk;
  // element() is where an element lies, or null for a zero.
  template <class R, class P, class E>
  __device__ __forceinline__ void fetch(Gather gather, unsigned char* rows, const T* any, R&& row_at, P&& position_at,
                                        E&& element) {
    if (gather == Gather::pieces) {
      const auto position = position_at(piece() * kPiece);
#pragma unroll
      for (int i = 0; i < kCount / kPiece; ++i) {
        const T* const from = element(row_at(piece_row(i)), position);
        if constexpr (kHasAsyncCopies)
          cp_async<kPieceBytes>(piece_place(rows, i), from != nullptr ? from : any, from != nullptr ? kPieceBytes : 0);
        else
          held_[i] = from != nullptr ? *reinterpret_cast<const Piece<T>*>(from) : Piece<T>{};
      }
    } else if (gather == Gather::rows) {
      const auto row = row_at(own_row());
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        move(i, place(rows, own_row(), k_of(i)), element(row, position_at(k_of(i))), any);
    } else {
      const auto position = position_at(own_k());
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        move(i, place(rows, row_of(i), own_k()), element(row_at(row_of(i)), position), any);
    }
  }

  __device__ __forceinline__ void put(Gather gather, unsigned char* rows) const {
    if (gather == Gather::pieces) {
      if constexpr (!kHasAsyncCopies)
#pragma unroll
        for (int i = 0; i < kCount / kPiece; ++i) *reinterpret_cast<Piece<T>*>(piece_place(rows, i)) = held_[i];
    } else if constexpr (kByElement) {
      return;
    } else if (gather == Gather::rows) {
#pragma unroll
      for (int i = 0; i < kCount; i += kPiece)
        *reinterpret_cast<Piece<T>*>(place(rows, own_row(), k_of(i))) = held_[i / kPiece];
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        *reinterpret_cast<T*>(place(rows, row_of(i), own_k())) = held_[i / kPiece].value[i % kPiece];
    }
  }

 private:
  __device__ __forceinline__ void move([[maybe_unused]] int i, [[maybe_unused]] unsigned char* to, const T* from,
                                       [[maybe_unused]] const T* any) {
    if constexpr (kByElement)
      cp_async<sizeof(T)>(to, from != nullptr ? from : any, from != nullptr ? sizeof(T) : 0);
    else
      held_[i / kPiece].value[i % kPiece] = from != nullptr ? *from : T{};
  }

  // Pieces: 4 threads share a row.
  __device__ __forceinline__ static int piece() { return threadIdx.x % kPieces; }
  __device__ __forceinline__ static int piece_row(int i) { return threadIdx.x / kPieces + i * (Threads / kPieces); }
  __device__ __forceinline__ static unsigned char* piece_place(unsigned char* rows, int i) {
    return rows + piece_offset(piece_row(i), piece());
  }
  // Along the rows: a thread collects the pieces of one.
  __device__ __forceinline__ static int own_row() { return threadIdx.x % Rows; }
  __device__ __forceinline__ static int k_of(int i) {
    return (threadIdx.x / Rows + i / kPiece * (Threads / Rows)) * kPiece + i % kPiece;
  }
  // Along the positions: a thread has one.
  __device__ __forceinline__ static int own_k() { return threadIdx.x % kDepth; }
  __device__ __forceinline__ static int row_of(int i) { return threadIdx.x / kDepth + i * (Threads / kDepth); }

  __device__ __forceinline__ static unsigned char* place(unsigned char* rows, int row, int k) {
    return rows + piece_offset(row, k / kPiece) + k % kPiece * sizeof(T);
  }

  Piece<T> held_[kHasAsyncCopies && kByElement ? 1 : kCount / kPiece];
};

template <class T, class Shape>
struct GatheredOperands {
  template <class U, int Rows>
  using Layout = RowMajor<U, Rows>;

  static constexpr bool kHoldsNothing = false;
  static constexpr int kDepth = kRowBytes / sizeof(T);
  using Positions = KnownPositions<T, kDepth>;

  struct Memory {
    alignas(16) unsigned char slots[Shape::kSlots * Shape::kSlotBytes];
    Term terms[Shape::kM];
    Positions positions[Shape::kThreads / 32];  // every warp has its own
  };

  class Left {
   public:
    __device__ __forceinline__ Left(const WeightParameters<T>& p, Memory& memory, int64_t group, int first_term,
                                    int64_t first_position)
        : p_(p), memory_(memory), image_(p.image + group * p.image_group_stride), first_position_(first_position) {
      for (int i = threadIdx.x; i < Shape::kM; i += Shape::kThreads) memory.terms[i] = p.term_at(first_term + i);
      __syncthreads();  // the terms are written
    }

    __device__ __forceinline__ void fetch(int chunk, unsigned char* rows) {
      Positions& positions = memory_.positions[threadIdx.x / 32];
      positions.find(p_, first_position_, chunk);
      rows_.fetch(
          p_.image_gather, rows, p_.image, [&](int row) { return memory_.terms[row]; },
          [&](int k) { return positions.at(chunk, k); },
          [&](const Term& term, const DepthPosition& position) {
            return p_.is_inside(position, term) ? image_ + position.image + term.offset : nullptr;
          });
    }
    __device__ __forceinline__ void put(unsigned char* rows) const { rows_.put(p_.image_gather, rows); }

   private:
    const WeightParameters<T>& p_;
    Memory& memory_;
    const T* image_;
    int64_t first_position_;
    GatheredRows<T, Shape::kM, Shape::kThreads> rows_;
  };

  // Reads the positions that Left has found for the same chunk.
  class Right {
   public:
    __device__ __forceinline__ Right(const WeightParameters<T>& p, const Memory& memory, int64_t group, int first_row)
        : p_(p),
          positions_(memory.positions[threadIdx.x / 32]),
          begin_(p.grad_output + group * p.grad_group_stride + first_row * p.grad_row_stride),
          count_(p.rows - first_row) {}

    __device__ __forceinline__ void fetch(int chunk, unsigned char* rows) {
      rows_.fetch(
          p_.grad_gather, rows, p_.grad_output, [](int row) { return row; },
          [&](int k) { return positions_.at(chunk, k); },
          [&](int row, const DepthPosition& position) {
            const bool there = row < count_ && p_.is_there(position);
            return there ? begin_ + position.grad + row * p_.grad_row_stride : nullptr;
          });
    }
    __device__ __forceinline__ void put(unsigned char* rows) const { rows_.put(p_.grad_gather, rows); }

   private:
    const WeightParameters<T>& p_;
    const Positions& positions_;
    const T* begin_;
    int count_;
    GatheredRows<T, Shape::kN, Shape::kThreads> rows_;
  };
};

}  // namespace unfoldconv::cuda
