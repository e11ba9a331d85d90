// A correlation as an implicit matrix product.
//
//   image    planes (batch, group, channel) of any strides
//   weight   for each phase [groups, rows, terms], rows of whole pieces
//   output   planes (batch, group, row of a variant) of any strides, one such layout for each phase and variant
//
//   output [positions, rows] = bias + patches [positions, terms] @ weight^T      for each group of each phase
//   patches[p, (tap, channel)] = image[channel, p * stride - padding_low + tap * dilation], or 0 outside the image
//
// A forward convolution is one phase, an input gradient one for each residue of the stride (csrc/phases.h), or for
// several that share their patches. One launch is for all of them: the first blocks are for the first phase, the next
// ones for the second. The phases of a tap fewer are shorter sums, and those without any are nothing but bias.
//
// The matrix of patches exists a tile at a time, in shared memory. A block owns the output of kM positions, counted
// over all images, and of kN rows of one group: every element of the output is written by one thread, and its sum
// depends on nothing but its own patch and row. Offsets inside an image fit 32 bits.
#pragma once

#include "gathered_patches.cuh"
#include "stored_sums.cuh"

namespace unfoldconv::cuda {

using WideTile = TileShape<64, 2, 4>;    // 128 positions by 128 rows
using NarrowTile = TileShape<64, 2, 2>;  // 128 by 64
using DoubleTile = TileShape<32, 2, 2>;  // 64 by 64: a sum takes twice the registers

template <class T, bool Tf32, class Shape, bool Pieces>
__global__ void __launch_bounds__(Shape::kThreads, (kGemmBlocks<T, Tf32, Shape>))
    correlate_tiles(const __grid_constant__ CorrelationParameters<T> p) {
  union Memory {
    alignas(16) unsigned char slots[Shape::kSlots * Shape::kSlotBytes];
    Staging<T, Shape> staging;
  };
  __shared__ Memory memory;

  for_each_tile(p.tiles, [&](int tile) {
    const PhaseParameters& phase = p.phase_of(tile);
    const int first_row = phase.row_tiles.divide(tile) * Shape::kN, group = p.groups.divide(tile);
    const int64_t first_position = int64_t{tile} * Shape::kM;
    PatchRows<T, Pieces, Shape::kM, Shape::kThreads> patches(p, phase, first_position, group);
    const T* const weight = p.weight + phase.weight_offset + group * phase.weight_group_stride;
    DenseRows<T, Shape::kN, Shape::kThreads> weights(phase.pieces, p.weight, [&](int row) {
      return first_row + row < phase.rows ? weight + (first_row + row) * phase.weight_row_stride : nullptr;
    });
    WarpSum<T, Shape::kWarpM> sum = {};
    multiply_chunks<T, Tf32, Shape>(sum, memory.slots, (phase.pieces + kPieces - 1) / kPieces, patches, weights);
    store_sum<T, Shape>(p, phase, memory.staging, sum, first_position, group, first_row);
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
