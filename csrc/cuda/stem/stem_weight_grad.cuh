// The gradient of the weight of stem_launch.h.
//
//   image     planes (batch, the group, channel) of any strides
//   gradient  planes (batch, the group, row) of any strides
//   result    [rows, terms], contiguous: terms are channels, then taps
//   partial   [splits, rows, terms], in the type of sums
//
//   sum [rows, terms] = gradient [rows, positions] @ patches [positions, terms]
//   patches[p, (channel, tap)] = image[channel, p * stride - padding_low + tap * dilation], or 0 outside the image
//
// A block owns the sums of some rows and one chunk of terms over every splits-th tile of positions: it brings the tile
// of the gradient and the box that its windows read (stem_tile.cuh). A warp has all of the rows, some of the terms, and
// where there are few terms some of the positions: warps that share terms are added up in order at the end. Lane 4 g +
// t has the sums of rows 8 i + g and terms 8 j + 2 t and the next one of its warp, for all i and j. Every element is
// written by one thread, for each split, and a second kernel adds these (split_sums.cuh).
//
// Floors, besides bytes / bandwidth: a step of 16 positions, 64 rows and 40 terms takes a warp 20 products (m16n8k16),
// 20 loads of pairs of positions, one element each, and 4 of the gradient.
#pragma once

#include "cuda/shared/split_sums.cuh"
#include "cuda/stem/stem_plan.cuh"

namespace unfoldconv::cuda {
namespace {

constexpr int kWarpTerms = 40;  // at most

// Positions of a tile.
template <class T>
constexpr int kStemDepth = sizeof(T) == 8 ? 64 : kStemPositions;

struct WeightSumParameters {
  StemTiling tiling;
  StemRows gradient;
  int rows, tile_rows, all_terms;
  int term_warps, warp_terms;  // warps that share the terms; the others take turns with the positions
  Divider<int64_t> row_tiles, chunks;
  int64_t jobs, splits;
  int gradient_at, box_at;  // in shared memory, in bytes
};

// Sums of a lane.
template <class T>
using WeightSum = Accumulator<T>[kStemRows<T> / 8][kWarpTerms / 8][2];

// What a lane multiplies: elements of the gradient, by row of the tile and position, and of the image, by term of the
// warp and position. With Edge, positions may be missing: there the gradient has zeros, and the image none that count.
template <class T, bool Edge>
struct WeightOperands {
  const T* gradient;
  int row_step, position_step;
  const T* box;
  const int* place;  // of a position in the box, or negative

  template <class Bits>
  __device__ __forceinline__ Bits bits(int offset, int position) const {
    static_assert(sizeof(Bits) == sizeof(T));
    const int at = place[position];
    if (Edge && at < 0) return 0;
    return reinterpret_cast<const Bits*>(box)[at + offset];
  }
  __device__ __forceinline__ uint32_t pair(int offset, int position) const {
    return bits<uint16_t>(offset, position) | static_cast<uint32_t>(bits<uint16_t>(offset, position + 1)) << 16;
  }
  __device__ __forceinline__ T element(int offset, int position) const {
    const int at = place[position];
    if (Edge && at < 0) return {};
    return box[at + offset];
  }
  __device__ __forceinline__ const T& of_gradient(int row, int position) const {
    return gradient[row * row_step + position * position_step];
  }
};

// The terms, of those that its warp has, for which a lane gathers elements: for each j one where instructions share the
// work among the lanes, two where each lane multiplies for itself.
template <class T, bool Tf32>
constexpr bool kOwnTerms = instruction_of<T, Tf32>() == Instruction::fma;
template <class T, bool Tf32>
__device__ __forceinline__ int gathered_term(int j, int e) {
  const int lane = threadIdx.x % 32;
  return 8 * j + (kOwnTerms<T, Tf32> ? lane % 4 * 2 + e : lane / 4);
}

// sum += gradient @ patches over one step of positions, from `first` on.
template <class T, bool Tf32, bool Edge>
__device__ __forceinline__ void multiply_positions(WeightSum<T>& sum, const WeightOperands<T, Edge>& operands,
                                                   const int (&offset)[kWarpTerms / 8][2], int first, int rows,
                                                   int terms) {
  constexpr Instruction which = instruction_of<T, Tf32>();
  constexpr int all_rows = kStemRows<T>;
  const int lane = threadIdx.x % 32, group = lane / 4, t = lane % 4;
  if constexpr (which == Instruction::mma_f64) {
    double b[kWarpTerms / 8];
#pragma unroll
    for (int j = 0; j < kWarpTerms / 8; ++j) b[j] = operands.element(offset[j][0], first + t);
#pragma unroll
    for (int i = 0; i < all_rows / 8; ++i) {
      if (8 * i >= rows) continue;
      const double a = operands.of_gradient(8 * i + group, first + t);
#pragma unroll
      for (int j = 0; j < kWarpTerms / 8; ++j)
        if (8 * j < terms) mma_m8n8k4(sum[i][j], a, b[j]);
    }
  } else if constexpr (which == Instruction::fma) {
    using A = Accumulator<T>;
#pragma unroll 2
    for (int k = 0; k < kStemStep<T>; ++k) {
      A a[all_rows / 8];
#pragma unroll
      for (int i = 0; i < all_rows / 8; ++i) a[i] = convert<A>(operands.of_gradient(8 * i + group, first + k));
#pragma unroll
      for (int j = 0; j < kWarpTerms / 8; ++j) {
        if (8 * j >= terms) continue;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const A b = convert<A>(operands.element(offset[j][e], first + k));
#pragma unroll
          for (int i = 0; i < all_rows / 8; ++i) sum[i][j][e] += a[i] * b;
        }
      }
    }
  } else {
    uint32_t b[kWarpTerms / 8][2];
#pragma unroll
    for (int j = 0; j < kWarpTerms / 8; ++j)
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if constexpr (which == Instruction::mma_tf32)
          b[j][k] = to_tf32(operands.template bits<uint32_t>(offset[j][0], first + t + 4 * k));
        else
          b[j][k] = operands.pair(offset[j][0], first + 2 * t + 8 * k);
      }
#pragma unroll
    for (int i = 0; i < all_rows / 8; i += 2) {
      if (8 * i >= rows) continue;
      uint32_t a[4];  // (rows 8 i.., the first half of the positions), (the next 8 rows, those), and both of the others
      if constexpr (which == Instruction::mma_tf32) {
#pragma unroll
        for (int k = 0; k < 4; ++k)
          a[k] = to_tf32(*reinterpret_cast<const uint32_t*>(
              &operands.of_gradient(8 * i + k % 2 * 8 + group, first + t + k / 2 * 4)));
      } else if (operands.row_step == 1) {
        ldmatrix<4, true>(a, &operands.of_gradient(8 * i + lane / 8 % 2 * 8, first + lane / 16 * 8 + lane % 8));
      } else {
        ldmatrix(a, &operands.of_gradient(8 * i + lane % 16, first + lane / 16 * 8));
      }
#pragma unroll
      for (int j = 0; j < kWarpTerms / 8; ++j)
        if (8 * j < terms) multiply_fragments<T, which>(sum[i][j], sum[i + 1][j], a, b[j]);
    }
  }
}

// Begins to bring a tile of the gradient to shared memory, with zeros where there is none. `begin` is its first row;
// `plane_offset` says where the positions of the tile are in a plane, if there.
template <class T>
__device__ __forceinline__ void load_gradient(const WeightSumParameters& p, const T* __restrict__ begin,
                                              const int* plane_offset, int rows, T* copy) {
  const auto move = [&]<int Width>() {
    for_each_of_rows<Width, T, kStemRows<T>, kStemDepth<T>>(
        p.gradient.rows_innermost, [&](int row, int position, int index) {
          const int offset = plane_offset[position];
          const bool there = row < rows && offset >= 0;
          const T* const from = begin + offset + int64_t{row} * p.gradient.row_stride;
          if constexpr (Width == 1) {
            copy[index] = there ? *from : T{};
          } else {
            MovedPiece<T> moved;
            moved.fetch(reinterpret_cast<unsigned char*>(copy + index), from, there, begin);
            moved.put(reinterpret_cast<unsigned char*>(copy + index));
          }
        });
  };
  if (p.gradient.pieces)
    move.template operator()<Piece<T>::kCount>();
  else
    move.template operator()<1>();
}

template <class T, bool Tf32>
__global__ void __launch_bounds__(kStemThreads, (kOwnTerms<T, Tf32> ? 2 : 3))
    sum_stem(const T* __restrict__ image, const T* __restrict__ gradient, T* result, Accumulator<T>* partial,
             const __grid_constant__ WeightSumParameters p) {
  using A = Accumulator<T>;
  constexpr int step = kStemStep<T>;
  const StemTiling& tiling = p.tiling;
  int* const place = dynamic_shared<int>();  // of the positions of a tile in the box, or -1
  int* const plane_offset = place + kStemDepth<T>;
  T* const gradients = reinterpret_cast<T*>(dynamic_shared<char>() + p.gradient_at);
  T* const box = reinterpret_cast<T*>(dynamic_shared<char>() + p.box_at);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
  const int warp_term = warp % p.term_warps * p.warp_terms, turn = warp / p.term_warps;
  const int turns = kStemWarps / p.term_warps;
  int offset[kWarpTerms / 8][2];  // in the box, of the terms for which this lane gathers
#pragma unroll
  for (int j = 0; j < kWarpTerms / 8; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int term = warp_term + gathered_term<T, Tf32>(j, e);
      offset[j][e] = term < tiling.chunk_terms ? tiling.offset_of(tiling.term_at(term)) : 0;
    }
  const bool rows_innermost = p.gradient.rows_innermost;
  const int row_step = rows_innermost ? 1 : StemRows::pitch<T>(kStemDepth<T>);
  const int position_step = rows_innermost ? StemRows::pitch<T>(kStemRows<T>) : 1;
  const int used = tiling.tile_positions(), steps = (used + step - 1) / step;

  for_each_tile(p.jobs, [&](int64_t job) {
    const int first_row = static_cast<int>(p.row_tiles.divide(job)) * p.tile_rows;
    const int chunk_index = static_cast<int>(p.chunks.divide(job));
    const int64_t split = job;
    const int rows = min(p.tile_rows, p.rows - first_row);
    const StemChunk chunk = tiling.chunk_at(chunk_index);
    const int terms = min(p.warp_terms, chunk.terms - warp_term);  // of this warp; 0 or fewer where it has none

    WeightSum<T> sum = {};
#pragma unroll 1
    for (int64_t index = split; index < tiling.tile_count; index += p.splits) {
      const StemTile tile = tiling.tile_at(index);
      const bool whole = used % step == 0 && tiling.is_whole(tile);
      __syncthreads();  // nobody reads what is in shared memory
      const int shift = tiling.load(image, tile, chunk, box);
      if (threadIdx.x < kStemDepth<T>) {
        const int offset = tiling.offset_in_plane(tile, threadIdx.x, p.gradient.axis_stride);
        plane_offset[threadIdx.x] = offset;
        place[threadIdx.x] = offset < 0 ? -1 : tiling.place_of(threadIdx.x) + shift;
      }
      __syncthreads();  // the tables are there
      load_gradient(p, gradient + tile.image * p.gradient.batch_stride + int64_t{first_row} * p.gradient.row_stride,
                    plane_offset, rows, gradients);
      arrive();
      __syncthreads();  // the operands are there
      const auto multiply = [&]<bool Edge>() {
        const WeightOperands<T, Edge> operands{gradients, row_step, position_step, box, place};
#pragma unroll 1
        for (int s = turn; s < steps; s += turns)
          multiply_positions<T, Tf32, Edge>(sum, operands, offset, s * step, rows, terms);
      };
      if (whole)
        multiply.template operator()<false>();
      else
        multiply.template operator()<true>();
    }

    // The sums of the other turns, one after the other, lane by lane.
    A* const others = reinterpret_cast<A*>(gradients);
    const int own = threadIdx.x % (32 * p.term_warps);
    const auto for_each_sum = [&](auto&& f) {
#pragma unroll
      for (int i = 0; i < kStemRows<T> / 8; ++i)
#pragma unroll
        for (int j = 0; j < kWarpTerms / 8; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) f(i, j, e);
    };
#pragma unroll 1
    for (int from = 1; from < turns; ++from) {
      __syncthreads();  // nobody reads what is in shared memory
      const auto shared = [&](int i, int j, int e) -> A& {
        return others[((i * (kWarpTerms / 8) + j) * 2 + e) * 32 * p.term_warps + own];
      };
      if (turn == from) for_each_sum([&](int i, int j, int e) { shared(i, j, e) = sum[i][j][e]; });
      __syncthreads();  // the sums are there
      if (turn == 0) for_each_sum([&](int i, int j, int e) { sum[i][j][e] += shared(i, j, e); });
    }
    if (turn > 0) return;
    int first_term = chunk.first.channel;  // of the chunk
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) first_term = first_term * tiling.kernel[axis] + chunk.first.tap[axis];
    for_each_sum([&](int i, int j, int e) {
      const int row = 8 * i + group, term = 8 * j + pair + e;
      if (row >= rows || term >= terms) return;
      const int64_t at = int64_t{first_row + row} * p.all_terms + first_term + warp_term + term;
      if (partial == nullptr)
        result[at] = convert<T>(sum[i][j][e]);
      else
        partial[split * p.rows * p.all_terms + at] = sum[i][j][e];
    });
  });
}

template <class T, bool Tf32>
void launch_sums(void* stream, const StemWeightSums& problem, const StemPlan& plan, const WeightSumParameters& p,
                 void* workspace) {
  auto* const result = static_cast<T*>(problem.result);
  auto* const partial = plan.splits > 1 ? static_cast<Accumulator<T>*>(workspace) : nullptr;
  launch(sum_stem<T, Tf32>, Grid{plan.blocks, kStemThreads, plan.shared_bytes}, stream,
         static_cast<const T*>(problem.image.data), static_cast<const T*>(problem.gradient.data), result, partial, p);
  if (partial != nullptr) launch_add_splits<T>(stream, partial, result, int64_t{p.rows} * p.all_terms, plan.splits);
}

}  // namespace
}  // namespace unfoldconv::cuda
