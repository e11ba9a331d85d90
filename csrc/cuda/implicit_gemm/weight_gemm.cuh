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
// more than one split, a second kernel adds them up in order. How the operands come to shared memory depends on which
// axis of them is contiguous: weight_pieces.cuh and weight_gather.cuh.
#pragma once

#include "cuda/implicit_gemm/weight_gather.cuh"
#include "cuda/implicit_gemm/weight_parameters.cuh"
#include "cuda/implicit_gemm/weight_pieces.cuh"

namespace unfoldconv::cuda {

// For __launch_bounds__: of how many blocks a multiprocessor must have room for the registers. What has been gathered
// by element waits in some, and FFMA needs more.
template <class T, bool Tf32, class Operands, class Shape>
constexpr int kWeightBlocks =
    Operands::kHoldsNothing && instruction_of<T, Tf32>() != Instruction::fma ? 512 / Shape::kThreads : 1;

template <class T, bool Tf32, class Shape, template <class, class> class Operands>
__global__ void __launch_bounds__(Shape::kThreads, (kWeightBlocks<T, Tf32, Operands<T, Shape>, Shape>))
    sum_weights(const __grid_constant__ WeightParameters<T> p) {
  using O = Operands<T, Shape>;
  __shared__ typename O::Memory memory;

  for_each_tile(p.tiles, [&](int64_t tile) {
    const int first_term = static_cast<int>(p.term_tiles.divide(tile)) * Shape::kM;
    const int first_row = static_cast<int>(p.row_tiles.divide(tile)) * Shape::kN;
    const int64_t group = p.groups.divide(tile), split = tile, first_chunk = split * p.split_chunks;
    const int chunks = static_cast<int>(min(p.split_chunks, p.chunks - first_chunk));
    typename O::Left patches(p, memory, group, first_term, first_chunk * O::kDepth);
    typename O::Right grads(p, memory, group, first_row);
    WarpSum<T, Shape::kWarpM> sum = {};
    multiply_chunks<T, Tf32, Shape, O::template Layout>(sum, memory.slots, chunks, patches, grads);

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

template <class T, bool Tf32, class Shape, template <class, class> class Operands>
void launch_weight_sums_of(void* stream, const GemmWeightSums& problem) {
  const WeightParameters<T> p(problem, Shape::kM, Shape::kN);
  launch(sum_weights<T, Tf32, Shape, Operands>, Grid{p.tiles, Shape::kThreads}, stream, p);
  if (p.partial == nullptr) return;
  const int64_t count = p.group_count * p.rows * p.terms;
  launch(add_splits<T>, Grid::of_items(count), stream, p, Divider<int64_t>(p.terms), Divider<int64_t>(p.rows),
         problem.splits);
}

template <class T, bool Tf32, class Shape, class Wide = Shape>
void launch_weight_sums(void* stream, const GemmWeightSums& problem) {
  if (!problem.pieces)
    launch_weight_sums_of<T, Tf32, Shape, GatheredOperands>(stream, problem);
  else if (problem.wide)
    launch_weight_sums_of<T, Tf32, Wide, PieceOperands>(stream, problem);
  else
    launch_weight_sums_of<T, Tf32, Shape, PieceOperands>(stream, problem);
}

}  // namespace unfoldconv::cuda
