// A correlation as an implicit matrix product.
//
//   image    planes (batch, group, channel) of any strides
//   weight   for each phase [groups, rows, terms], rows of whole pieces
//   output   planes (batch, group, row of a variant) of any strides, one such layout for each phase and variant
//
//   output [positions, rows] = bias + patches [positions, terms] @ weight^T      for each group of each phase
//   patches[p, (tap, channel)] = image[channel, p * stride - padding_low + tap * dilation], or 0 outside the image
//
// A forward convolution is one phase, an input gradient one for each residue of the stride (csrc/problem/phases.h), or
// for several that share their patches. One launch is for all of them: the first blocks are for the first phase, the
// next ones for the second. The phases of a tap fewer are shorter sums, and those without any are nothing but bias.
//
// Long sums are cut into segments (cut_sums), which begin at zero and are added in order, in the type of sums. Either a
// block has one segment and puts its sum aside, for add_segments; or it has them all, and puts aside what it has so
// far, because there are no registers to hold it. Both add the same numbers in the same order.
//
// The matrix of patches exists a tile at a time, in shared memory. A block owns the output of kM positions, counted
// over all images, and of kN rows of one group: every element of the output is written by one thread, and its sum
// depends on nothing but its own patch and row. Offsets inside an image fit 32 bits.
#pragma once

#include "cuda/implicit_gemm/gathered_patches.cuh"
#include "cuda/implicit_gemm/stored_sums.cuh"

namespace unfoldconv::cuda {

using WideTile = TileShape<64, 2, 4>;    // 128 positions by 128 rows
using NarrowTile = TileShape<64, 2, 2>;  // 128 by 64
using DoubleTile = TileShape<32, 2, 2>;  // 64 by 64: a sum takes twice the registers

// Whether sums in segments get such tiles. To gather wide ones element by element takes all registers as it is.
template <class Shape, bool Pieces>
constexpr bool kMayCut = Pieces || Shape::kN <= NarrowTile::kN;

// sum += the patches and weights of a segment of a tile's sums.
template <class T, bool Tf32, class Shape, bool Pieces>
__device__ __forceinline__ void multiply_segment(const CorrelationParameters<T>& p, int item, int segment,
                                                 WarpSum<T, Shape::kWarpM>& sum, unsigned char* slots) {
  const auto at = p.template locate<Shape>(forget(item));
  const PhaseParameters& phase = at.phase;
  PatchRows<T, Pieces, Shape::kM, Shape::kThreads> patches(p, phase, at.first_position, at.group);
  const T* const weight = p.weight + phase.weight_offset + at.group * phase.weight_group_stride;
  DenseRows<T, Shape::kN, Shape::kThreads> weights(phase.pieces, p.weight, [&](int row) {
    return at.first_row + row < phase.rows ? weight + (at.first_row + row) * phase.weight_row_stride : nullptr;
  });
  const int first = segment * phase.segment_chunks;
  multiply_chunks<T, Tf32, Shape>(sum, slots, min(first + phase.segment_chunks, phase.chunks), patches, weights, first);
}

// A block for each tile, or for each segment of its sums.
template <class T, bool Tf32, class Shape, bool Pieces>
__global__ void __launch_bounds__(Shape::kThreads, (kGemmBlocks<T, Tf32, Shape, Pieces>))
    correlate_tiles(const __grid_constant__ CorrelationParameters<T> p) {
  union Memory {
    alignas(16) unsigned char slots[Shape::kSlots * Shape::kSlotBytes];
    Staging<T, Shape> staging;
  };
  __shared__ Memory memory;

  for_each_tile(p.items, [&](int item) {
    int segment = kMayCut<Shape, Pieces> ? p.template locate<Shape>(item).split : 0;
    bool more = false;
    do {
      WarpSum<T, Shape::kWarpM> sum = {};
      multiply_segment<T, Tf32, Shape, Pieces>(p, item, segment, sum, memory.slots);
      const int same = forget(item);
      bool aside = false;
      if constexpr (kMayCut<Shape, Pieces>) {
        const PhaseParameters& phase = p.template locate<Shape>(same).phase;
        const bool alone = phase.splits.divisor() > 1;  // with a segment of a sum
        const int64_t slot = alone ? same : blockIdx.x;
        more = !alone && segment + 1 < phase.segments;
        aside = alone || more;
        if (!alone && segment > 0) add_aside<T, Shape>(p.sums, slot, sum);
        if (aside) put_aside<T, Shape>(p.sums, slot, sum);
        ++segment;
      }
      if (!aside) store_sum<T, Shape>(p, same, memory.staging, sum);
    } while (more);
  });
}

// Adds the segments of the tiles that correlate_tiles has split.
template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads) add_segments(const __grid_constant__ CorrelationParameters<T> p) {
  __shared__ Staging<T, Shape> staging;

  for_each_tile(p.items, [&](int item) {
    const auto at = p.template locate<Shape>(item);
    if (at.split > 0 || at.phase.splits.divisor() == 1) return;  // one block adds them; or there is nothing to add
    WarpSum<T, Shape::kWarpM> sum = {};
    for (int segment = 0; segment < at.phase.segments; ++segment) add_aside<T, Shape>(p.sums, item + segment, sum);
    store_sum<T, Shape>(p, item, staging, sum);
  });
}

template <class T, bool Tf32, class Shape>
void launch_correlation(void* stream, const GemmCorrelation& problem) {
  const CorrelationParameters<T> p(problem, Shape::kM, Shape::kN);
  Grid grid{p.items, Shape::kThreads};
  if (p.sums != nullptr && !problem.split) grid.blocks = std::min(grid.blocks, problem.sum_bytes / kSumBytes<T, Shape>);
  if (problem.image_pieces)
    launch(correlate_tiles<T, Tf32, Shape, true>, grid, stream, p);
  else
    launch(correlate_tiles<T, Tf32, Shape, false>, grid, stream, p);
  if (problem.split) launch(add_segments<T, Shape>, grid, stream, p);
}

}  // namespace unfoldconv::cuda
