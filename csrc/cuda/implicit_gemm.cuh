// A correlation as an implicit matrix product.
//
//   image    planes (batch, group, channel) of any strides
//   weight   [groups, rows, terms], rows of whole pieces
//   output   planes (batch, group, row) of any strides, one such layout for each variant
//
//   output [positions, rows] = bias + patches [positions, terms] @ weight^T      for each group
//   patches[p, (tap, channel)] = image[channel, p * stride - padding_low + tap * dilation], or 0 outside the image
//
// The matrix of patches exists a tile at a time, in shared memory. A block owns the output of kM positions, counted
// over all images, and of kN rows of one group: every element of the output is written by one thread, and its sum
// depends on nothing but its own patch and row. Offsets inside an image fit 32 bits.
#pragma once

#include "gemm_tile.cuh"
#include "implicit_gemm.h"

namespace unfoldconv::cuda {

using WideTile = TileShape<64, 2, 4>;    // 128 positions by 128 rows
using NarrowTile = TileShape<64, 2, 2>;  // 128 by 64
using DoubleTile = TileShape<32, 2, 2>;  // 64 by 64: a sum takes twice the registers

// --- what the kernels know -------------------------------------------------------------------------------------------

template <class T>
struct CorrelationParameters {
  const T *image, *weight, *bias;
  T* output;

  Divider<int64_t> positions_of_image;  // splits a position counted over all images
  Unraveler<3, int> positions, kernel;
  int64_t position_count;
  int size[3], stride[3], dilation[3], padding_low[3];

  int64_t image_stride, image_group_stride;
  int channel_stride, axis_stride[3];  // of the image

  Divider<int> channel_pieces;  // of a tap
  int channels, pieces;         // of a tap and of a row

  int64_t weight_group_stride, weight_row_stride;

  int64_t output_image_stride, output_group_stride, output_row_stride, output_axis_stride[3];
  int64_t variant_offset[kMaxVariants];
  Divider<int> rows_of_variant;
  int first_row, rows;
  bool rows_adjoin, output_pieces;

  Divider<int64_t> row_tiles, groups;
  int64_t tiles;

  CorrelationParameters(const GemmCorrelation& problem, int tile_positions, int tile_rows)
      : image(static_cast<const T*>(problem.image)),
        weight(static_cast<const T*>(problem.weight.data)),
        bias(static_cast<const T*>(problem.bias)),
        output(static_cast<T*>(problem.output)),
        positions_of_image(problem.geometry.position_numel()),
        positions(problem.geometry.positions),
        kernel(problem.geometry.kernel),
        position_count(problem.output_layout.count[0] * problem.geometry.position_numel()),
        image_stride(problem.image_layout.stride[0]),
        image_group_stride(problem.image_layout.stride[1]),
        channel_stride(problem.image_layout.stride[2]),
        channel_pieces(ceil_div(problem.image_layout.count[2], Piece<T>::kCount)),
        channels(problem.image_layout.count[2]),
        pieces(problem.geometry.tap_numel() * ceil_div(problem.image_layout.count[2], Piece<T>::kCount)),
        weight_group_stride(problem.weight.group_stride),
        weight_row_stride(problem.weight.row_stride),
        output_image_stride(problem.output_layout.stride[0]),
        output_group_stride(problem.output_layout.stride[1]),
        output_row_stride(problem.output_layout.stride[2]),
        rows_of_variant(problem.output_layout.count[2]),
        first_row(problem.first_row),
        rows(problem.rows),
        rows_adjoin(problem.rows_adjoin),
        output_pieces(problem.output_pieces),
        row_tiles(ceil_div(problem.rows, tile_rows)),
        groups(problem.groups),
        tiles(ceil_div(position_count, tile_positions) * problem.groups * ceil_div(problem.rows, tile_rows)) {
    for (int axis = 0; axis < 3; ++axis) {
      size[axis] = problem.geometry.image[axis];
      stride[axis] = problem.geometry.stride[axis];
      dilation[axis] = problem.geometry.dilation[axis];
      padding_low[axis] = problem.geometry.padding_low[axis];
      axis_stride[axis] = problem.image_layout.axis_stride[axis];
      output_axis_stride[axis] = problem.output_layout.axis_stride[axis];
    }
    std::copy(problem.variant_offset, problem.variant_offset + kMaxVariants, variant_offset);
  }

  struct Position {
    int64_t image;
    int index[3];
  };
  __device__ __forceinline__ Position locate(int64_t position) const {
    Position result;
    const int of_image = static_cast<int>(positions_of_image.divide(position));
    result.image = position;
    positions(of_image, result.index);
    return result;
  }
};

// --- patches ---------------------------------------------------------------------------------------------------------

// Loads the patches of neighbouring positions. With Pieces the channels of a tap are pieces in memory, and the 4
// threads of a row read along them. Otherwise a thread collects the channels of a piece, and its warp reads along the
// positions.
template <class T, bool Pieces, int Rows, int Threads>
class PatchRows {
  static constexpr int kCount = Rows * kPieces / Threads;                // pieces of a thread
  static constexpr int kPatches = Pieces ? kCount : 1;                   // positions of a thread
  static constexpr bool kByElement = kHasAsyncCopies && sizeof(T) >= 4;  // copies of one element

 public:
  __device__ __forceinline__ PatchRows(const CorrelationParameters<T>& p, int64_t first_position, int64_t group)
      : p_(p) {
#pragma unroll
    for (int i = 0; i < kPatches; ++i) {
      Patch& patch = patches_[i];
      const int64_t position = first_position + row(i);
      patch.origin = p.image + group * p.image_group_stride;
      patch.offset = 0;
      patch.corner[0] = -(1 << 30);  // outside whatever the tap
      patch.corner[1] = patch.corner[2] = 0;
      if (position >= p.position_count) continue;
      const auto located = p.locate(position);
      patch.origin += located.image * p.image_stride;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        patch.corner[axis] = located.index[axis] * p.stride[axis] - p.padding_low[axis];
        patch.offset += patch.corner[axis] * p.axis_stride[axis];
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
        moved_[i].fetch(rows + piece_offset(row(i), piece(i)), patch.origin + patch.offset + reach.offset, inside,
                        p_.image);
      }
    } else {
      const Patch& patch = patches_[0];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const Reach reach = reach_of(chunk * kPieces + piece(i));
        const bool inside = is_inside(patch, reach);
        const T* const from = patch.origin + (patch.offset + reach.offset);
#pragma unroll
        for (int k = 0; k < Piece<T>::kCount; ++k) {
          const bool there = inside && reach.channel + k < p_.channels;
          const T* const element = there ? from + k * p_.channel_stride : p_.image;
          if constexpr (kByElement) {
            cp_async<sizeof(T)>(rows + piece_offset(row(i), piece(i)) + k * sizeof(T), element, there ? sizeof(T) : 0);
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
    const T* origin;  // of the image and group
    int offset, corner[3];
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
    reach.counts = piece < p_.pieces;
    reach.channel = p_.channel_pieces.divide(piece) * Piece<T>::kCount;
    p_.kernel(reach.counts ? piece : 0, reach.tap);
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
  Patch patches_[kPatches];
  MovedPiece<T> moved_[Pieces ? kCount : 1];
  Piece<T> gathered_[Pieces || kByElement ? 1 : kCount];
};

// --- the output ------------------------------------------------------------------------------------------------------

constexpr int64_t kNowhere = std::numeric_limits<int64_t>::min();  // the offset of what is not there

// A block's sum on its way to memory, kRows rows at a time: shared memory turns what lanes hold into runs of whatever
// adjoins in the output, positions or rows.
template <class T, class Shape>
struct Staging {
  static constexpr int kRows = std::min(Shape::kN, 64);
  static constexpr int kPad = 16;  // bytes, against bank conflicts
  static constexpr int kPositionPitch = kRows * static_cast<int>(sizeof(T)) + kPad;
  static constexpr int kRowPitch = Shape::kM * static_cast<int>(sizeof(T)) + kPad;

  alignas(16) unsigned char tile[std::max(Shape::kM * kPositionPitch, kRows* kRowPitch)];
  int64_t position_offset[Shape::kM], row_offset[kRows];
  Accumulator<T> bias[kRows];

  __device__ __forceinline__ unsigned char* element(bool rows_adjoin, int position, int row) {
    return rows_adjoin ? tile + position * kPositionPitch + row * static_cast<int>(sizeof(T))
                       : tile + row * kRowPitch + position * static_cast<int>(sizeof(T));
  }

  // Writes Width elements at a time.
  template <int Width>
  __device__ __forceinline__ void store(bool rows_adjoin, T* output) {
    struct alignas(Width * sizeof(T)) Run {
      T value[Width];
    };
    const int runs = (rows_adjoin ? kRows : Shape::kM) / Width;
    for (int item = threadIdx.x; item < (rows_adjoin ? Shape::kM : kRows) * runs; item += Shape::kThreads) {
      const int along = item % runs * Width, across = item / runs;
      const int position = rows_adjoin ? across : along, row = rows_adjoin ? along : across;
      if (position_offset[position] == kNowhere || row_offset[row] == kNowhere) continue;
      *reinterpret_cast<Run*>(output + position_offset[position] + row_offset[row]) =
          *reinterpret_cast<const Run*>(element(rows_adjoin, position, row));
    }
  }
};

template <class T, class Shape>
__device__ __forceinline__ void store_sum(const CorrelationParameters<T>& p, Staging<T, Shape>& staging,
                                          const WarpSum<T, Shape::kWarpM>& sum, int64_t first_position, int64_t group,
                                          int first_row) {
  using S = Staging<T, Shape>;
  const int warp = threadIdx.x / 32, lane_group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
  const int warp_position = warp / Shape::kWarpsN * Shape::kWarpM, warp_row = warp % Shape::kWarpsN * kWarpN;

  for (int i = threadIdx.x; i < Shape::kM; i += Shape::kThreads) {
    staging.position_offset[i] = kNowhere;
    if (first_position + i >= p.position_count) continue;
    const auto located = p.locate(first_position + i);
    int64_t offset = located.image * p.output_image_stride;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) offset += located.index[axis] * p.output_axis_stride[axis];
    staging.position_offset[i] = offset;
  }
#pragma unroll 1
  for (int part = 0; part < Shape::kN; part += S::kRows) {
    for (int i = threadIdx.x; i < S::kRows; i += Shape::kThreads) {
      int variant = first_row + part + i;
      const bool there = variant < p.rows;
      variant += p.first_row;
      const int row = p.rows_of_variant.divide(variant);
      staging.row_offset[i] = there ? p.variant_offset[variant] + row * p.output_row_stride : kNowhere;
      staging.bias[i] = {};
      if (there && p.bias != nullptr)
        staging.bias[i] = convert<Accumulator<T>>(p.bias[group * p.rows_of_variant.divisor() + row]);
    }
    __syncthreads();  // the tables are written
    if (warp_row >= part && warp_row < part + S::kRows) {
#pragma unroll
      for (int j = 0; j < kWarpN / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int row = warp_row - part + 8 * j + pair + e;
          const Accumulator<T> bias = staging.bias[row];
#pragma unroll
          for (int i = 0; i < Shape::kWarpM / 8; ++i)
            *reinterpret_cast<T*>(staging.element(p.rows_adjoin, warp_position + 8 * i + lane_group, row)) =
                convert<T>(sum[i][j][e] + bias);
        }
      }
    }
    __syncthreads();  // the tile is written
    T* const output = p.output + group * p.output_group_stride;
    if (p.output_pieces) {
      staging.template store<Piece<T>::kCount>(p.rows_adjoin, output);
    } else {
      staging.template store<1>(p.rows_adjoin, output);
    }
    __syncthreads();  // the tile and the tables are read
  }
}

// --- the kernel ------------------------------------------------------------------------------------------------------

template <class T, bool Tf32, class Shape, bool Pieces>
__global__ void __launch_bounds__(Shape::kThreads, (kGemmBlocks<T, Tf32, Shape>))
    correlate_tiles(const __grid_constant__ CorrelationParameters<T> p) {
  union Memory {
    alignas(16) unsigned char slots[Shape::kSlots * Shape::kSlotBytes];
    Staging<T, Shape> staging;
  };
  __shared__ Memory memory;

  for_each_tile(p.tiles, [&](int64_t tile) {
    const int first_row = static_cast<int>(p.row_tiles.divide(tile)) * Shape::kN;
    const int64_t group = p.groups.divide(tile), first_position = tile * Shape::kM;
    PatchRows<T, Pieces, Shape::kM, Shape::kThreads> patches(p, first_position, group);
    const T* const weight = p.weight + group * p.weight_group_stride;
    DenseRows<T, Shape::kN, Shape::kThreads> weights(p.pieces, p.weight, [&](int row) {
      return first_row + row < p.rows ? weight + (first_row + row) * p.weight_row_stride : nullptr;
    });
    WarpSum<T, Shape::kWarpM> sum = {};
    multiply_chunks<T, Tf32, Shape>(sum, memory.slots, (p.pieces + kPieces - 1) / kPieces, patches, weights);
    store_sum<T, Shape>(p, memory.staging, sum, first_position, group, first_row);
  });
}

template <class T, bool Tf32, class Shape>
void launch_correlation(void* stream, const GemmCorrelation& problem) {
  const CorrelationParameters<T> p(problem, Shape::kM, Shape::kN);
  const Grid grid{p.tiles, Shape::kThreads};
  if (problem.image_pieces)
    launch(correlate_tiles<T, Tf32, Shape, true>, grid, stream, p);
  else
    launch(correlate_tiles<T, Tf32, Shape, false>, grid, stream, p);
}

}  // namespace unfoldconv::cuda
