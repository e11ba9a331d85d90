// The gradient of a weight as an implicit matrix product.
//
//   image         planes (batch, group, channel) of any strides
//   grad_output   planes (batch, group, row) of any strides
//   grad_weight   [groups, rows, channels, taps], contiguous
//   partial       [splits, groups, rows, terms] in the type of sums
//
//   sum [terms, rows] = patches^T [terms, positions] @ grad_output^T [rows, positions]^T      for each group
//   patches[p, (tap, channel)] = image[channel, p * stride - padding_low + tap * dilation], or 0 outside the image
//
// The depth of the product is the positions of all images, one after the other. A block owns the sums of kM terms and
// kN rows of one group over one range of the depth, a split; every element is written by one thread. Where there is
// more than one split, a second kernel adds them up in order.
#pragma once

#include "gemm_tile.cuh"
#include "implicit_gemm.h"

namespace unfoldconv::cuda {

// Fewer slots than for correlations: the tables of positions take some of the shared memory.
template <class Shape>
struct WeightTile : Shape {
  static constexpr int kSlots = std::min(3, Shape::kSlots);
};
using NarrowWeightTile = WeightTile<TileShape<64, 2, 2>>;  // 128 terms by 64 rows
using DoubleWeightTile = WeightTile<TileShape<32, 2, 2>>;  // 64 by 64

// --- what the kernels know -------------------------------------------------------------------------------------------

template <class T>
struct WeightParameters {
  const T *image, *grad_output;
  T* grad_weight;
  Accumulator<T>* partial;  // or null where there is one split

  Divider<int64_t> positions_of_image;
  Unraveler<3, int> positions, kernel;
  int64_t position_count;
  int size[3], stride[3], dilation[3], padding_low[3];

  int64_t image_stride, image_group_stride, axis_stride[3];
  int channel_stride;
  int64_t grad_image_stride, grad_group_stride, grad_row_stride, grad_axis_stride[3];

  Divider<int> channels;
  int terms, taps, rows;
  int64_t group_count;

  Divider<int64_t> term_tiles, row_tiles, groups;
  int64_t tiles;
  int64_t chunks, split_chunks;  // of the depth

  WeightParameters(const GemmWeightSums& problem, int tile_terms, int tile_rows)
      : image(static_cast<const T*>(problem.image)),
        grad_output(static_cast<const T*>(problem.grad_output)),
        grad_weight(static_cast<T*>(problem.grad_weight)),
        partial(static_cast<Accumulator<T>*>(problem.partial)),
        positions_of_image(problem.geometry.position_numel()),
        positions(problem.geometry.positions),
        kernel(problem.geometry.kernel),
        position_count(problem.image_layout.count[0] * problem.geometry.position_numel()),
        image_stride(problem.image_layout.stride[0]),
        image_group_stride(problem.image_layout.stride[1]),
        channel_stride(problem.image_layout.stride[2]),
        grad_image_stride(problem.grad_layout.stride[0]),
        grad_group_stride(problem.grad_layout.stride[1]),
        grad_row_stride(problem.grad_layout.stride[2]),
        channels(problem.image_layout.count[2]),
        terms(problem.image_layout.count[2] * problem.geometry.tap_numel()),
        taps(problem.geometry.tap_numel()),
        rows(problem.grad_layout.count[2]),
        group_count(problem.image_layout.count[1]),
        term_tiles(ceil_div(terms, tile_terms)),
        row_tiles(ceil_div(rows, tile_rows)),
        groups(group_count),
        tiles(problem.splits * group_count * ceil_div(terms, tile_terms) * ceil_div(rows, tile_rows)),
        chunks(ceil_div(position_count, kRowBytes / sizeof(T))),
        split_chunks(ceil_div(chunks, problem.splits)) {
    for (int axis = 0; axis < 3; ++axis) {
      size[axis] = problem.geometry.image[axis];
      stride[axis] = problem.geometry.stride[axis];
      dilation[axis] = problem.geometry.dilation[axis];
      padding_low[axis] = problem.geometry.padding_low[axis];
      axis_stride[axis] = problem.image_layout.axis_stride[axis];
      grad_axis_stride[axis] = problem.grad_layout.axis_stride[axis];
    }
  }

  // Where the sum of a term and a row of a group goes in grad_weight, and in a split of the partial sums.
  __device__ __forceinline__ int64_t weight_index(int64_t group, int row, int term) const {
    int tap = term;
    const int channel = channels.divide(tap);
    return ((group * rows + row) * channels.divisor() + channel) * taps + tap;
  }
  __device__ __forceinline__ int64_t partial_index(int64_t group, int row, int term) const {
    return (group * rows + row) * terms + term;
  }
};

// --- operands --------------------------------------------------------------------------------------------------------

// What a position adds to the place of an element in the image and in grad_output.
struct DepthPosition {
  int64_t image, grad;
  int corner[3];
};
// What a term adds to that in the image.
struct Term {
  int offset, tap[3];
};

constexpr int kOutsideBefore = -(1 << 30), kOutsideBehind = 1 << 29;  // of every image, whatever is added

// Rows of either operand, gathered element by element. With RowsAdjoin a warp reads along the rows, and each thread
// collects the pieces of a row; otherwise it reads along the positions.
template <class T, bool RowsAdjoin, int Rows, int Threads>
class GatheredRows {
  static constexpr int kDepth = kRowBytes / sizeof(T);  // elements of a row in a chunk
  static constexpr int kCount = Rows * kDepth / Threads;
  static constexpr int kWidth = RowsAdjoin ? Piece<T>::kCount : 1;
  static constexpr bool kAsync = kHasAsyncCopies && sizeof(T) >= 4;

 public:
  // element(row, k) points to an element of the chunk, or is null for a zero.
  template <class F>
  __device__ __forceinline__ void fetch(unsigned char* rows, const T* any, F&& element) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const T* const from = element(row(i), k(i));
      if constexpr (kAsync)
        cp_async<sizeof(T)>(place(rows, i), from != nullptr ? from : any, from != nullptr ? sizeof(T) : 0);
      else
        held_[i] = from != nullptr ? *from : T{};
    }
  }
  __device__ __forceinline__ void put(unsigned char* rows) const {
    if constexpr (!kAsync) {
#pragma unroll
      for (int i = 0; i < kCount; i += kWidth) {
        if constexpr (RowsAdjoin) {
          Piece<T> piece;
#pragma unroll
          for (int e = 0; e < kWidth; ++e) piece.value[e] = held_[i + e];
          *reinterpret_cast<Piece<T>*>(place(rows, i)) = piece;
        } else {
          *reinterpret_cast<T*>(place(rows, i)) = held_[i];
        }
      }
    }
  }

 private:
  __device__ __forceinline__ static int row(int i) {
    return RowsAdjoin ? threadIdx.x % Rows : threadIdx.x / kDepth + i * (Threads / kDepth);
  }
  __device__ __forceinline__ static int k(int i) {
    if constexpr (!RowsAdjoin) return threadIdx.x % kDepth;
    return (threadIdx.x / Rows + i / kWidth * (Threads / Rows)) * kWidth + i % kWidth;
  }
  __device__ __forceinline__ static unsigned char* place(unsigned char* rows, int i) {
    return rows + piece_offset(row(i), k(i) / Piece<T>::kCount) + k(i) % Piece<T>::kCount * sizeof(T);
  }

  T held_[kAsync ? 1 : kCount];
};

template <class T, class Shape>
struct WeightMemory {
  static constexpr int kDepth = kRowBytes / sizeof(T);

  alignas(16) unsigned char slots[Shape::kSlots * Shape::kSlotBytes];
  Term terms[Shape::kM];
  DepthPosition positions[Shape::kThreads / 32][kDepth];  // of a chunk; every warp has its own
};

// The two operands of one block.
template <class T, bool RowsAdjoin, class Shape>
class PatchTerms {
 public:
  __device__ __forceinline__ PatchTerms(const WeightParameters<T>& p, WeightMemory<T, Shape>& memory, int64_t group,
                                        int first_term, int64_t first_position)
      : p_(p), memory_(memory), image_(p.image + group * p.image_group_stride), first_position_(first_position) {
    for (int i = threadIdx.x; i < Shape::kM; i += Shape::kThreads) {
      Term& term = memory.terms[i];
      int tap = first_term + i;
      const bool there = tap < p.terms;
      if (!there) tap = 0;
      term.offset = p.channels.divide(tap) * p.channel_stride;
      p.kernel(tap, term.tap);
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        term.tap[axis] *= p.dilation[axis];
        term.offset += term.tap[axis] * static_cast<int>(p.axis_stride[axis]);
      }
      if (!there) term.tap[0] = kOutsideBehind;
    }
    __syncthreads();  // the terms are written
  }

  __device__ __forceinline__ void fetch(int chunk, unsigned char* rows) {
    DepthPosition(&positions)[WeightMemory<T, Shape>::kDepth] = memory_.positions[threadIdx.x / 32];
    __syncwarp();  // the positions of the last chunk have been read
    locate(chunk, positions);
    __syncwarp();  // those of this one are written
    rows_.fetch(rows, p_.image, [&](int row, int k) -> const T* {
      const Term& term = memory_.terms[row];
      const DepthPosition& position = positions[k];
      bool inside = true;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis)
        inside &= static_cast<unsigned>(position.corner[axis] + term.tap[axis]) < static_cast<unsigned>(p_.size[axis]);
      return inside ? image_ + position.image + term.offset : nullptr;
    });
  }
  __device__ __forceinline__ void put(unsigned char* rows) const { rows_.put(rows); }

 private:
  __device__ __forceinline__ void locate(int chunk, DepthPosition* positions) const {
    constexpr int depth = WeightMemory<T, Shape>::kDepth;
    const int lane = threadIdx.x % 32;
    if (lane >= depth) return;
    DepthPosition& result = positions[lane];
    int64_t image = first_position_ + static_cast<int64_t>(chunk) * depth + lane;
    if (image >= p_.position_count) {
      result = {0, -1, {kOutsideBefore, 0, 0}};
      return;
    }
    int index[3];
    const int position = static_cast<int>(p_.positions_of_image.divide(image));
    p_.positions(position, index);
    result.image = image * p_.image_stride;
    result.grad = image * p_.grad_image_stride;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      result.corner[axis] = index[axis] * p_.stride[axis] - p_.padding_low[axis];
      result.image += result.corner[axis] * p_.axis_stride[axis];
      result.grad += index[axis] * p_.grad_axis_stride[axis];
    }
  }

  const WeightParameters<T>& p_;
  WeightMemory<T, Shape>& memory_;
  const T* image_;
  int64_t first_position_;
  GatheredRows<T, RowsAdjoin, Shape::kM, Shape::kThreads> rows_;
};

// Reads the positions that PatchTerms has located for the same chunk.
template <class T, bool RowsAdjoin, class Shape>
class GradRows {
 public:
  __device__ __forceinline__ GradRows(const WeightParameters<T>& p, const WeightMemory<T, Shape>& memory, int64_t group,
                                      int first_row)
      : p_(p),
        memory_(memory),
        begin_(p.grad_output + group * p.grad_group_stride + first_row * p.grad_row_stride),
        count_(p.rows - first_row) {}

  __device__ __forceinline__ void fetch(int, unsigned char* rows) {
    const DepthPosition(&positions)[WeightMemory<T, Shape>::kDepth] = memory_.positions[threadIdx.x / 32];
    rows_.fetch(rows, p_.grad_output, [&](int row, int k) -> const T* {
      const bool there = row < count_ && positions[k].corner[0] != kOutsideBefore;
      return there ? begin_ + positions[k].grad + row * p_.grad_row_stride : nullptr;
    });
  }
  __device__ __forceinline__ void put(unsigned char* rows) const { rows_.put(rows); }

 private:
  const WeightParameters<T>& p_;
  const WeightMemory<T, Shape>& memory_;
  const T* begin_;
  int count_;
  GatheredRows<T, RowsAdjoin, Shape::kN, Shape::kThreads> rows_;
};

// --- the kernels -----------------------------------------------------------------------------------------------------

template <class T, bool Tf32, class Shape, bool RowsAdjoin>
__global__ void __launch_bounds__(Shape::kThreads) sum_weights(const __grid_constant__ WeightParameters<T> p) {
  __shared__ WeightMemory<T, Shape> memory;

  for_each_tile(p.tiles, [&](int64_t tile) {
    const int first_term = static_cast<int>(p.term_tiles.divide(tile)) * Shape::kM;
    const int first_row = static_cast<int>(p.row_tiles.divide(tile)) * Shape::kN;
    const int64_t group = p.groups.divide(tile), split = tile, first_chunk = split * p.split_chunks;
    const int chunks = static_cast<int>(min(p.split_chunks, p.chunks - first_chunk));
    PatchTerms<T, RowsAdjoin, Shape> patches(p, memory, group, first_term,
                                             first_chunk * WeightMemory<T, Shape>::kDepth);
    GradRows<T, RowsAdjoin, Shape> grads(p, memory, group, first_row);
    WarpSum<T, Shape::kWarpM> sum = {};
    multiply_chunks<T, Tf32, Shape>(sum, memory.slots, chunks, patches, grads);

    const int warp = threadIdx.x / 32, lane_group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
    const int warp_term = first_term + warp / Shape::kWarpsN * Shape::kWarpM + lane_group;
    const int warp_row = first_row + warp % Shape::kWarpsN * kWarpN + pair;
#pragma unroll
    for (int j = 0; j < kWarpN / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = warp_row + 8 * j + e;
#pragma unroll
        for (int i = 0; i < Shape::kWarpM / 8; ++i) {
          const int term = warp_term + 8 * i;
          if (term >= p.terms || row >= p.rows) continue;
          if (p.partial == nullptr)
            p.grad_weight[p.weight_index(group, row, term)] = convert<T>(sum[i][j][e]);
          else
            p.partial[split * p.group_count * p.rows * p.terms + p.partial_index(group, row, term)] = sum[i][j][e];
        }
      }
    }
  });
}

// One thread for each element of grad_weight.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_splits(const __grid_constant__ WeightParameters<T> p, const __grid_constant__ Divider<int64_t> terms,
               const __grid_constant__ Divider<int64_t> rows, int64_t splits) {
  const int64_t count = p.group_count * p.rows * p.terms;
  for_each_item(count, [&](int64_t item) {
    Accumulator<T> sum = p.partial[item];
    for (int64_t split = 1; split < splits; ++split) sum += p.partial[split * count + item];
    int64_t group = item;
    const int term = static_cast<int>(terms.divide(group)), row = static_cast<int>(rows.divide(group));
    p.grad_weight[p.weight_index(group, row, term)] = convert<T>(sum);
  });
}

template <class T, bool Tf32, class Shape>
void launch_weight_sums(void* stream, const GemmWeightSums& problem) {
  const WeightParameters<T> p(problem, Shape::kM, Shape::kN);
  const Grid grid{p.tiles, Shape::kThreads};
  if (problem.rows_adjoin)
    launch(sum_weights<T, Tf32, Shape, true>, grid, stream, p);
  else
    launch(sum_weights<T, Tf32, Shape, false>, grid, stream, p);
  if (p.partial == nullptr) return;
  const int64_t count = p.group_count * p.rows * p.terms;
  launch(add_splits<T>, Grid::of_items(count), stream, p, Divider<int64_t>(p.terms), Divider<int64_t>(p.rows),
         problem.splits);
}

}  // namespace unfoldconv::cuda
