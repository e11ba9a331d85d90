// What the kernels of weight_gemm.cuh know, and where positions and terms lie in their operands.
#pragma once

#include "cuda/implicit_gemm/gemm_tile.cuh"
#include "cuda/implicit_gemm/implicit_gemm_launch.h"

namespace unfoldconv::cuda {

// Fewer slots than for correlations: what is known of positions and terms takes some of the shared memory.
template <class Shape, int Slots>
struct WeightTile : Shape {
  static constexpr int kSlots = std::min(Slots, Shape::kSlots);
};
using WideWeightTile = WeightTile<TileShape<64, 2, 4>, 2>;    // 128 terms by 128 rows
using NarrowWeightTile = WeightTile<TileShape<64, 2, 2>, 3>;  // 128 by 64
using DoubleWeightTile = WeightTile<TileShape<32, 2, 2>, 3>;  // 64 by 64

// What a position adds to the place of an element in the image and in grad_output.
struct alignas(16) DepthPosition {
  int64_t image, grad;
  int corner[3];
};
// What a term adds to that in the image.
struct alignas(16) Term {
  int offset, tap[3];
};

constexpr int kOutsideBefore = -(1 << 30), kOutsideBehind = 1 << 29;  // of every image, whatever is added

template <class T>
struct WeightParameters {
  const T *image, *grad_output;
  T* grad_weight;
  Accumulator<T>* partial;  // or null where there is one split

  Divider<int64_t> positions_of_image;
  Unraveler<3, int> positions, kernel;
  int64_t position_count;
  int size[3], stride[3], dilation[3], padding_low[3];

  int64_t image_stride, image_group_stride;
  int channel_stride, axis_stride[3];  // of the image
  int64_t grad_image_stride, grad_group_stride, grad_row_stride, grad_axis_stride[3];
  Gather image_gather, grad_gather;

  bool channels_innermost;  // in the order of terms, or else taps do, as in grad_weight
  Divider<int> inner;       // splits a term into an index of what is innermost and one of the other
  int terms, channels, taps, rows;
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
        image_gather(problem.image_gather),
        grad_gather(problem.grad_gather),
        channels_innermost(problem.pieces || problem.image_gather == Gather::rows),
        inner(channels_innermost ? problem.image_layout.count[2] : problem.geometry.tap_numel()),
        terms(problem.image_layout.count[2] * problem.geometry.tap_numel()),
        channels(problem.image_layout.count[2]),
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
    const auto [channel, tap] = channel_and_tap(term);
    return ((group * rows + row) * channels + channel) * taps + tap;
  }
  __device__ __forceinline__ int64_t partial_index(int64_t group, int row, int term) const {
    return (group * rows + row) * terms + term;
  }

  __device__ __forceinline__ Term term_at(int term) const {
    Term result;
    const bool there = term < terms;
    const auto [channel, tap] = channel_and_tap(there ? term : 0);
    kernel(tap, result.tap);
    result.offset = channel * channel_stride;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      result.tap[axis] *= dilation[axis];
      result.offset += result.tap[axis] * axis_stride[axis];
    }
    if (!there) result.tap[0] = kOutsideBehind;
    return result;
  }

  // Of a position counted over all images.
  __device__ __forceinline__ DepthPosition position_at(int64_t image) const {
    if (image >= position_count) return {0, 0, {kOutsideBefore, 0, 0}};
    DepthPosition result;
    int index[3];
    const int position = static_cast<int>(positions_of_image.divide(image));
    positions(position, index);
    result.image = image * image_stride;
    result.grad = image * grad_image_stride;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      result.corner[axis] = index[axis] * stride[axis] - padding_low[axis];
      result.image += result.corner[axis] * axis_stride[axis];
      result.grad += index[axis] * grad_axis_stride[axis];
    }
    return result;
  }

  __device__ __forceinline__ static bool is_there(const DepthPosition& position) {
    return position.corner[0] != kOutsideBefore;
  }
  __device__ __forceinline__ bool is_inside(const DepthPosition& position, const Term& term) const {
    bool inside = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      inside &= static_cast<unsigned>(position.corner[axis] + term.tap[axis]) < static_cast<unsigned>(size[axis]);
    return inside;
  }

 private:
  struct ChannelAndTap {
    int channel, tap;
  };
  __device__ __forceinline__ ChannelAndTap channel_and_tap(int term) const {
    const int innermost = inner.divide(term);
    return channels_innermost ? ChannelAndTap{innermost, term} : ChannelAndTap{term, innermost};
  }
};

// Of every chunk the `Count` positions that a warp works on, from the first one on that it is given. As one lane each
// finds them out, they are enough for some chunks to come.
template <class T, int Count>
class KnownPositions {
  static constexpr int kDepth = kRowBytes / sizeof(T), kChunks = 32 / Count;
  static_assert(32 % Count == 0);

 public:
  // Called for one chunk after the other, from 0 on, by the whole warp.
  __device__ __forceinline__ void find(const WeightParameters<T>& p, int64_t first_position, int chunk) {
    if (chunk % kChunks != 0) return;
    const int lane = threadIdx.x % 32;
    __syncwarp();  // the positions of the last chunks have been read
    value_[lane] = p.position_at(first_position + static_cast<int64_t>(chunk + lane / Count) * kDepth + lane % Count);
    __syncwarp();  // those of the next ones are written
  }
  __device__ __forceinline__ const DepthPosition& at(int chunk, int i) const {
    return value_[chunk % kChunks * Count + i];
  }

 private:
  DepthPosition value_[32];
};

}  // namespace unfoldconv::cuda
