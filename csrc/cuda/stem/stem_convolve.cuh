// The forward pass of stem_launch.h.
//
//   image    planes (batch, the group, channel) of any strides
//   weight   planes (the group, row, channel) with their taps, of any strides
//   output   planes (batch, the group, row) of any strides
//
//   output [positions, rows] = bias + patches [positions, terms] @ weight [rows, terms]^T
//   patches[p, (channel, tap)] = image[channel, p * stride - padding_low + tap * dilation], or 0 outside the image
//
// A block has the weights of some rows in shared memory, and goes over tiles of positions of one image: it brings the
// box that a tile reads (stem_tile.cuh), and each warp multiplies 32 positions with all of the rows, its operands
// gathered from the box. Lane 4 g + t has the sums of positions 8 i + g and rows 8 j + 2 t and the next one, for all i
// and j. Where the terms are cut into chunks, box and weights come for each of them. Every element of the output is
// written by one thread, and its terms are summed in an order that follows from geometry, types and strides alone.
//
// Floors, besides bytes / bandwidth: a step of 16 terms and 64 rows takes a warp 16 products (m16n8k16) and as many
// loads of pairs of terms, one element each, beside 4 of weights. With 147 terms of 16 bits that is about what tensor
// cores and shared memory do in the same time, and a quarter more than what memory needs for the output.
#pragma once

#include "cuda/stem/stem_plan.cuh"

namespace unfoldconv::cuda {
namespace {

struct ConvolveParameters {
  StemTiling tiling;
  StemRows output;
  int64_t weight_row;  // strides
  int weight_stride[4];
  bool weight_pieces;  // whether all chunks of all rows of the weight lie in memory as pieces
  int rows, tile_rows;
  Divider<int64_t> row_tiles;
  int64_t jobs;
  int tiles_of_job;
  int weights_at, box_at;  // in shared memory, in bytes
};

// Sums of a lane.
template <class T>
using StemSum = Accumulator<T>[4][kStemRows<T> / 8][2];

// The elements of 32 positions, as a lane needs them: of its position i (8 i + g of the warp), at some offset of a
// term.
template <class T, bool Tail>
struct StemPatches {
  const T* box;
  int place[4];
  const int* offset;  // of the terms from this step on
  int terms;          // that there are from this step on

  template <class Bits>
  __device__ __forceinline__ Bits bits(int i, int term) const {
    static_assert(sizeof(Bits) == sizeof(T));
    if (Tail && term >= terms) return 0;
    return reinterpret_cast<const Bits*>(box)[place[i] + offset[term]];
  }
  __device__ __forceinline__ uint32_t pair(int i, int term) const {
    return bits<uint16_t>(i, term) | static_cast<uint32_t>(bits<uint16_t>(i, term + 1)) << 16;
  }
  __device__ __forceinline__ T element(int i, int term) const {
    if (Tail && term >= terms) return {};
    return box[place[i] + offset[term]];
  }
};

// sum += patches @ weights^T over one step of terms. `weights` is the first row at the first term of the step; `rows`
// says how many of them count.
template <class T, bool Tf32, bool Tail>
__device__ __forceinline__ void multiply_step(StemSum<T>& sum, const StemPatches<T, Tail>& patches, const T* weights,
                                              int pitch, int rows) {
  constexpr Instruction which = instruction_of<T, Tf32>();
  constexpr int all_rows = kStemRows<T>;
  const int lane = threadIdx.x % 32, group = lane / 4, t = lane % 4;
  if constexpr (which == Instruction::mma_f64) {
    double a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = patches.element(i, t);
#pragma unroll
    for (int j = 0; j < all_rows / 8; ++j) {
      if (8 * j >= rows) continue;
      const double b = weights[(8 * j + group) * pitch + t];
#pragma unroll
      for (int i = 0; i < 4; ++i) mma_m8n8k4(sum[i][j], a[i], b);
    }
  } else if constexpr (which == Instruction::fma) {
    using A = Accumulator<T>;
#pragma unroll 1  // it is long enough as it is
    for (int piece = 0; piece < 2; ++piece) {
      constexpr int count = Piece<T>::kCount;
      A a[4][count];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int k = 0; k < count; ++k) a[i][k] = convert<A>(patches.element(i, piece * count + k));
#pragma unroll
      for (int j = 0; j < all_rows / 8; ++j) {
        if (8 * j >= rows) continue;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const auto b = *reinterpret_cast<const Piece<T>*>(weights + (8 * j + 2 * t + e) * pitch + piece * count);
#pragma unroll
          for (int k = 0; k < count; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[i][j][e] += a[i][k] * convert<A>(b.value[k]);
        }
      }
    }
  } else {
    uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (which == Instruction::mma_tf32)
          a[m][i] = to_tf32(patches.template bits<uint32_t>(2 * m + i % 2, t + i / 2 * 4));
        else
          a[m][i] = patches.pair(2 * m + i % 2, 2 * t + i / 2 * 8);
      }
#pragma unroll
    for (int j = 0; j < all_rows / 8; j += 2) {
      if (8 * j >= rows) continue;
      uint32_t b[2][2], matrices[4];  // (rows 8 j.., piece 0), (rows 8 j.., piece 1), and both of the next 8 rows
      ldmatrix(matrices, weights + (8 * j + lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * Piece<T>::kCount);
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = which == Instruction::mma_tf32 ? to_tf32(matrices[i]) : matrices[i];
#pragma unroll
      for (int m = 0; m < 2; ++m)
#pragma unroll
        for (int k = 0; k < 2; ++k) multiply_fragments<T, which>(sum[2 * m][j + k], sum[2 * m + 1][j + k], a[m], b[k]);
    }
  }
}

// Begins to bring the weights of a chunk: `rows` of them, with zeros behind the last term.
template <class T>
__device__ __forceinline__ void load_weights(const ConvolveParameters& p, const T* __restrict__ weight, int rows,
                                             const StemChunk& chunk, const int* offset, T* copy) {
  const int pitch = StemRows::pitch<T>(p.tiling.padded_terms);
  const T* begin = weight + static_cast<int64_t>(chunk.first.channel) * p.weight_stride[0];
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) begin += chunk.first.tap[axis] * p.weight_stride[1 + axis];
  constexpr int piece = Piece<T>::kCount;
  const int width = p.weight_pieces ? piece : 1;
  for (int row = threadIdx.x / 32; row < rows; row += kStemWarps) {
    const T* const from = begin + row * p.weight_row;
    T* const to = copy + row * pitch;
#pragma unroll 4
    for (int term = threadIdx.x % 32 * width; term < p.tiling.padded_terms; term += 32 * width) {
      if (p.weight_pieces) {
        MovedPiece<T> moved;
        moved.fetch(reinterpret_cast<unsigned char*>(to + term), from + term, term < chunk.terms, weight);
        moved.put(reinterpret_cast<unsigned char*>(to + term));
      } else {
        to[term] = term < chunk.terms ? from[offset[term]] : T{};
      }
    }
  }
}

// A tile of the output on its way to memory, `kPart` rows at a time.
template <class T>
struct StemStaging {
  static constexpr int kPart = 128 / sizeof(T);
  static constexpr int kBytes =
      sizeof(T) * std::max(kStemPositions * StemRows::pitch<T>(kPart), kPart* StemRows::pitch<T>(kStemPositions));
};

template <class T>
__device__ __forceinline__ void store_tile(const ConvolveParameters& p, const StemSum<T>& sum, const int* place,
                                           int first_row, const T* __restrict__ bias, T* output, T* staging) {
  constexpr int part_rows = StemStaging<T>::kPart;
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
  const bool rows_innermost = p.output.rows_innermost;
  const int position_step = rows_innermost ? StemRows::pitch<T>(part_rows) : 1;
  const int row_step = rows_innermost ? 1 : StemRows::pitch<T>(kStemPositions);
  const int rows = min(p.tile_rows, p.rows - first_row);
#pragma unroll
  for (int part = 0; part < kStemRows<T>; part += part_rows) {
    if (part >= rows) continue;
    __syncthreads();  // nobody reads the box, or the part before
#pragma unroll
    for (int j = 0; j < part_rows / 8; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = part + 8 * j + pair + e;
        const Accumulator<T> shift =
            bias != nullptr && row < rows ? convert<Accumulator<T>>(bias[first_row + row]) : Accumulator<T>{};
#pragma unroll
        for (int i = 0; i < 4; ++i)
          staging[(32 * warp + 8 * i + group) * position_step + (row - part) * row_step] =
              convert<T>(sum[i][part / 8 + j][e] + shift);
      }
    __syncthreads();  // the part is there
    const auto move = [&]<int Width>() {
      struct alignas(Width * sizeof(T)) Run {
        T value[Width];
      };
      for_each_of_rows<Width, T, part_rows, kStemPositions>(rows_innermost, [&](int row, int position, int index) {
        if (part + row >= rows || place[position] < 0) return;
        *reinterpret_cast<Run*>(output + place[position] + int64_t{part + row} * p.output.row_stride) =
            *reinterpret_cast<const Run*>(staging + index);
      });
    };
    if (p.output.pieces)
      move.template operator()<Piece<T>::kCount>();
    else
      move.template operator()<1>();
  }
}

template <class T, bool Tf32>
__global__ void __launch_bounds__(kStemThreads)
    convolve_stem(const T* __restrict__ image, const T* __restrict__ weight, const T* __restrict__ bias, T* output,
                  const __grid_constant__ ConvolveParameters p) {
  const StemTiling& tiling = p.tiling;
  static_assert(kStemThreads == kStemPositions);  // each thread finds one
  int* const place = dynamic_shared<int>();       // of the positions of a tile in a plane of the output
  int* const term_offset = place + kStemPositions;
  int* const weight_offset = term_offset + tiling.padded_terms;
  T* const weights = reinterpret_cast<T*>(dynamic_shared<char>() + p.weights_at);
  T* const box = reinterpret_cast<T*>(dynamic_shared<char>() + p.box_at);
  for (int term = threadIdx.x; term < tiling.padded_terms; term += kStemThreads) {
    const bool counts = term < tiling.chunk_terms;
    const StemIndex index = tiling.term_at(counts ? term : 0);
    term_offset[term] = tiling.offset_of(index);
    int offset = index.channel * p.weight_stride[0];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) offset += index.tap[axis] * p.weight_stride[1 + axis];
    weight_offset[term] = offset;
  }
  int own_place[4];  // in the box
#pragma unroll
  for (int i = 0; i < 4; ++i) own_place[i] = tiling.place_of(threadIdx.x / 32 * 32 + 8 * i + threadIdx.x % 32 / 4);
  const bool has_positions = static_cast<int>(threadIdx.x) / 32 * 32 < tiling.tile_positions();  // this warp
  const int pitch = StemRows::pitch<T>(tiling.padded_terms);

  for_each_tile(p.jobs, [&](int64_t job) {
    const int first_row = static_cast<int>(p.row_tiles.divide(job)) * p.tile_rows;
    const int rows = min(p.tile_rows, p.rows - first_row);
    const int64_t begin = job * p.tiles_of_job, end = min(begin + p.tiles_of_job, tiling.tile_count);
    for (int64_t index = begin; index < end; ++index) {
      const StemTile tile = tiling.tile_at(index);
      StemSum<T> sum = {};
#pragma unroll 1
      for (int c = 0; c < tiling.chunk_count; ++c) {
        const StemChunk chunk = tiling.chunk_at(c);
        __syncthreads();  // nobody reads what is in shared memory, and the tables are there
        if (index == begin || tiling.chunk_count > 1)
          load_weights(p, weight + first_row * p.weight_row, rows, chunk, weight_offset, weights);
        const int shift = tiling.load(image, tile, chunk, box);
        if (c == 0) place[threadIdx.x] = tiling.offset_in_plane(tile, threadIdx.x, p.output.axis_stride);
        arrive();
        __syncthreads();  // the operands are there
        if (!has_positions) continue;
        int first = 0;
        const auto multiply = [&]<bool Tail>() {
          const StemPatches<T, Tail> patches{box + shift,
                                             {own_place[0], own_place[1], own_place[2], own_place[3]},
                                             term_offset + first,
                                             chunk.terms - first};
          multiply_step<T, Tf32, Tail>(sum, patches, weights + first, pitch, rows);
        };
#pragma unroll 1
        for (; first + kStemStep<T> <= chunk.terms; first += kStemStep<T>) multiply.template operator()<false>();
        if (first < chunk.terms) multiply.template operator()<true>();
      }
      store_tile(p, sum, place, first_row, bias,
                 output + tile.image * p.output.batch_stride + int64_t{first_row} * p.output.row_stride, box);
    }
  });
}

template <class T, bool Tf32>
void launch_convolve(void* stream, const StemConvolution& problem, const StemPlan& plan, const ConvolveParameters& p) {
  launch(convolve_stem<T, Tf32>, Grid{plan.blocks, kStemThreads, plan.shared_bytes}, stream,
         static_cast<const T*>(problem.image.data), static_cast<const T*>(problem.weight.data),
         static_cast<const T*>(problem.bias), static_cast<T*>(const_cast<void*>(problem.output.data)), p);
}

}  // namespace
}  // namespace unfoldconv::cuda
