// The patches of a correlation (implicit_gemm.cuh) on their way from the image to shared memory.
#pragma once

#include "cuda/implicit_gemm/correlation_parameters.cuh"

namespace unfoldconv::cuda {

// Loads the patches of neighbouring positions. With Pieces the channels of a tap are pieces in memory, and the 4
// threads of a row read along them. Otherwise a thread collects the channels of a piece, and its warp reads along the
// positions.
template <class T, bool Pieces, int Rows, int Threads>
class PatchRows {
  static constexpr int kCount = Rows * kPieces / Threads;                // pieces of a thread
  static constexpr int kPatches = Pieces ? kCount : 1;                   // positions of a thread
  static constexpr bool kByElement = kHasAsyncCopies && sizeof(T) >= 4;  // copies of one element

 public:
  __device__ __forceinline__ PatchRows(const CorrelationParameters<T>& p, const PhaseParameters& phase,
                                       int64_t first_position, int group)
      : p_(p), phase_(phase) {
#pragma unroll
    for (int i = 0; i < kPatches; ++i) {
      Patch& patch = patches_[i];
      const int64_t position = first_position + row(i);
      patch.begin = p.image + group * p.image_group_stride;
      patch.corner[0] = -(1 << 30);  // outside whatever the tap
      patch.corner[1] = patch.corner[2] = 0;
      if (position >= phase.position_count) continue;
      const auto located = phase.locate(position);
      patch.begin += located.image * p.image_stride;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        patch.corner[axis] = located.index[axis] * p.stride[axis] - phase.padding_low[axis];
        patch.begin += patch.corner[axis] * p.axis_stride[axis];
      }
    }
  }

  __device__ __forceinline__ void fetch(int chunk, unsigned char* rows) {
    if constexpr (Pieces) {
      const Reach reach = reach_of(chunk * kPieces + piece(0));
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Patch& patch = patches_[i];
        const bool inside = is_inside(patch, reach);
        moved_[i].fetch(rows + piece_offset(row(i), piece(i)), patch.begin + reach.offset, inside, p_.image);
      }
    } else {
      const Patch& patch = patches_[0];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Reach reach = reach_of(chunk * kPieces + piece(i));
        const bool inside = is_inside(patch, reach);
#pragma unroll
        for (int k = 0; k < Piece<T>::kCount; ++k) {
          const bool there = inside && reach.channel + k < p_.channels;
          const T* const element = patch.begin + (reach.offset + k * p_.channel_stride);
          if constexpr (kByElement) {
            cp_async<sizeof(T)>(rows + piece_offset(row(i), piece(i)) + k * sizeof(T), there ? element : p_.image,
                                there ? sizeof(T) : 0);
          } else {
            gathered_[i].value[k] = there ? *element : T{};
          }
        }
      }
    }
  }

  __device__ __forceinline__ void put(unsigned char* rows) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      unsigned char* const to = rows + piece_offset(row(i), piece(i));
      if constexpr (Pieces) {
        moved_[i].put(to);
      } else if constexpr (!kByElement) {
        *reinterpret_cast<Piece<T>*>(to) = gathered_[i];
      }
    }
  }

 private:
  struct Patch {
    const T* begin;  // its first tap, be it inside of the image or not
    int corner[3];
  };
  // What a piece of terms adds to the corner of a patch.
  struct Reach {
    int offset, tap[3], channel;
    bool counts;  // not beyond the last term
  };

  __device__ __forceinline__ static int row(int i) {
    return Pieces ? threadIdx.x / kPieces + i * (Threads / kPieces) : threadIdx.x % Rows;
  }
  __device__ __forceinline__ static int piece(int i) {
    return Pieces ? threadIdx.x % kPieces : threadIdx.x / Rows + i * (Threads / Rows);
  }

  __device__ __forceinline__ Reach reach_of(int piece) const {
    Reach reach;
    reach.counts = piece < phase_.pieces;
    reach.channel = p_.channel_pieces.divide(piece) * Piece<T>::kCount;
    phase_.kernel(reach.counts ? piece : 0, reach.tap);
    reach.offset = reach.channel * p_.channel_stride;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      reach.tap[axis] *= p_.dilation[axis];
      reach.offset += reach.tap[axis] * p_.axis_stride[axis];
    }
    return reach;
  }

  __device__ __forceinline__ bool is_inside(const Patch& patch, const Reach& reach) const {
    bool inside = reach.counts;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      inside &= static_cast<unsigned>(patch.corner[axis] + reach.tap[axis]) < static_cast<unsigned>(p_.size[axis]);
    return inside;
  }

  const CorrelationParameters<T>& p_;
  const PhaseParameters& phase_;
  Patch patches_[kPatches];
  MovedPiece<T> moved_[Pieces ? kCount : 1];
  Piece<T> gathered_[Pieces || kByElement ? 1 : kCount];
};

}  // namespace unfoldconv::cuda
