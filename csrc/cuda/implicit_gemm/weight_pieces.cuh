// The operands of weight_gemm.cuh where channels and rows are contiguous, in whole pieces (channels_last): the pieces
// of a position go to shared memory as they lie, and the product transposes them (depth_major.cuh).
//
// A warp copies its own positions of a chunk, and each of its lanes always the same piece of them: what it knows of its
// term stays in registers.
#pragma once

#include "cuda/implicit_gemm/depth_major.cuh"
#include "cuda/implicit_gemm/weight_parameters.cuh"

namespace unfoldconv::cuda {

template <class T, class Shape>
struct PieceOperands {
  template <class U, int Rows>
  using Layout = DepthMajor<U, Rows>;

  static constexpr bool kHoldsNothing = kHasAsyncCopies;  // between fetch and put
  static constexpr int kDepth = kRowBytes / sizeof(T), kWarps = Shape::kThreads / 32;
  static constexpr int kPositions = kDepth / kWarps;  // of a chunk and a warp
  static_assert(kDepth % kWarps == 0);
  using Positions = KnownPositions<T, kPositions>;

  struct Memory {
    alignas(16) unsigned char slots[Shape::kSlots * Shape::kSlotBytes];
    Positions positions[kWarps];
  };

  // How the threads share the pieces of kRows rows at the positions of a chunk.
  template <int Rows>
  struct Share {
    static constexpr int kAcross = DepthMajor<T, Rows>::kPiecesAcross, kAtOnce = 32 / kAcross;
    static constexpr int kCount = Rows * kPieces / Shape::kThreads;  // pieces of a thread
    static_assert(32 % kAcross == 0 && kCount * kAtOnce == kPositions);

    __device__ __forceinline__ static int piece() { return threadIdx.x % kAcross; }
    // Among those of its warp, and where the piece goes.
    __device__ __forceinline__ static int position(int i) { return threadIdx.x % 32 / kAcross + i * kAtOnce; }
    __device__ __forceinline__ static unsigned char* place(unsigned char* rows, int i) {
      return rows + DepthMajor<T, Rows>::offset(threadIdx.x / 32 * kPositions + position(i), piece());
    }
  };

  class Left {
    using Own = Share<Shape::kM>;

   public:
    __device__ __forceinline__ Left(const WeightParameters<T>& p, Memory& memory, int64_t group, int first_term,
                                    int64_t first_position)
        : p_(p),
          positions_(memory.positions[threadIdx.x / 32]),
          term_(p.term_at(first_term + Own::piece() * Piece<T>::kCount)),
          image_(p.image + group * p.image_group_stride + term_.offset),
          first_position_(first_position + threadIdx.x / 32 * kPositions) {}

    __device__ __forceinline__ void fetch(int chunk, unsigned char* rows) {
      positions_.find(p_, first_position_, chunk);
#pragma unroll
      for (int i = 0; i < Own::kCount; ++i) {
        const DepthPosition& position = positions_.at(chunk, Own::position(i));
        moved_[i].fetch(Own::place(rows, i), image_ + position.image, p_.is_inside(position, term_), p_.image);
      }
    }
    __device__ __forceinline__ void put(unsigned char* rows) const {
#pragma unroll
      for (int i = 0; i < Own::kCount; ++i) moved_[i].put(Own::place(rows, i));
    }

   private:
    const WeightParameters<T>& p_;
    Positions& positions_;
    const Term term_;
    const T* image_;
    int64_t first_position_;
    MovedPiece<T> moved_[Own::kCount];
  };

  // Reads the positions that Left has found for the same chunk.
  class Right {
    using Own = Share<Shape::kN>;

   public:
    __device__ __forceinline__ Right(const WeightParameters<T>& p, const Memory& memory, int64_t group, int first_row)
        : p_(p),
          positions_(memory.positions[threadIdx.x / 32]),
          row_(first_row + Own::piece() * Piece<T>::kCount),
          grad_(p.grad_output + group * p.grad_group_stride + row_) {}

    __device__ __forceinline__ void fetch(int chunk, unsigned char* rows) {
#pragma unroll
      for (int i = 0; i < Own::kCount; ++i) {
        const DepthPosition& position = positions_.at(chunk, Own::position(i));
        const bool there = row_ < p_.rows && p_.is_there(position);
        moved_[i].fetch(Own::place(rows, i), grad_ + position.grad, there, p_.grad_output);
      }
    }
    __device__ __forceinline__ void put(unsigned char* rows) const {
#pragma unroll
      for (int i = 0; i < Own::kCount; ++i) moved_[i].put(Own::place(rows, i));
    }

   private:
    const WeightParameters<T>& p_;
    const Positions& positions_;
    int row_;
    const T* grad_;
    MovedPiece<T> moved_[Own::kCount];
  };
};

}  // namespace unfoldconv::cuda
