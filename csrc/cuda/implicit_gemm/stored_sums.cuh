// The sums of a correlation (implicit_gemm.cuh) on their way from registers to the output, or put aside.
#pragma once

#include "cuda/implicit_gemm/correlation_parameters.cuh"

namespace unfoldconv::cuda {

// --- put aside -------------------------------------------------------------------------------------------------------

// Slots of memory are as large as a tile, and each thread reads of them only what it has written, in the order in which
// it holds it; so does the same thread of add_segments.
template <class T, class Shape>
constexpr int64_t kSumBytes = Shape::kM * Shape::kN * sizeof(Accumulator<T>);

template <class T>
struct alignas(2 * sizeof(Accumulator<T>)) SumPair {
  Accumulator<T> value[2];
};

// Calls f(pair of the slot, pair of the sum) for all that this thread holds.
template <class T, class Shape, class Sum, class F>
__device__ __forceinline__ void for_each_pair(Accumulator<T>* sums, int64_t slot, Sum& sum, F&& f) {
  SumPair<T>* pair = reinterpret_cast<SumPair<T>*>(sums + slot * (Shape::kM * Shape::kN)) + threadIdx.x;
#pragma unroll
  for (int i = 0; i < Shape::kWarpM / 8; ++i)
#pragma unroll
    for (int j = 0; j < kWarpN / 8; ++j, pair += Shape::kThreads) f(*pair, sum[i][j]);
}

template <class T, class Shape>
__device__ __forceinline__ void put_aside(Accumulator<T>* sums, int64_t slot, const WarpSum<T, Shape::kWarpM>& sum) {
  for_each_pair<T, Shape>(sums, slot, sum, [](SumPair<T>& to, const auto& from) { to = {from[0], from[1]}; });
}

// sum = what was put aside + sum
template <class T, class Shape>
__device__ __forceinline__ void add_aside(Accumulator<T>* sums, int64_t slot, WarpSum<T, Shape::kWarpM>& sum) {
  for_each_pair<T, Shape>(sums, slot, sum, [](const SumPair<T>& from, auto& to) {
    const SumPair<T> pair = from;
    to[0] = pair.value[0] + to[0];
    to[1] = pair.value[1] + to[1];
  });
}

// --- the output ------------------------------------------------------------------------------------------------------

constexpr int64_t kNowhere = std::numeric_limits<int64_t>::min();  // the offset of what is not there

// A block's sum on its way to memory, kRows rows at a time: shared memory transposes what lanes hold into runs along
// the innermost axis of the output, positions or rows.
template <class T, class Shape>
struct Staging {
  static constexpr int kRows = std::min(Shape::kN, 64);
  static constexpr int kPad = 16;  // bytes, against bank conflicts
  static constexpr int kPositionPitch = kRows * static_cast<int>(sizeof(T)) + kPad;
  static constexpr int kRowPitch = Shape::kM * static_cast<int>(sizeof(T)) + kPad;

  alignas(16) unsigned char tile[std::max(Shape::kM * kPositionPitch, kRows* kRowPitch)];
  int64_t position_offset[Shape::kM], row_offset[kRows];
  Accumulator<T> bias[kRows];

  __device__ __forceinline__ unsigned char* element(bool rows_innermost, int position, int row) {
    return rows_innermost ? tile + position * kPositionPitch + row * static_cast<int>(sizeof(T))
                          : tile + row * kRowPitch + position * static_cast<int>(sizeof(T));
  }

  // Writes Width elements at a time.
  template <int Width>
  __device__ __forceinline__ void store(bool rows_innermost, T* output) {
    struct alignas(Width * sizeof(T)) Run {
      T value[Width];
    };
    const int runs = (rows_innermost ? kRows : Shape::kM) / Width;
    for (int item = threadIdx.x; item < (rows_innermost ? Shape::kM : kRows) * runs; item += Shape::kThreads) {
      const int along = item % runs * Width, across = item / runs;
      const int position = rows_innermost ? across : along, row = rows_innermost ? along : across;
      if (position_offset[position] == kNowhere || row_offset[row] == kNowhere) continue;
      *reinterpret_cast<Run*>(output + position_offset[position] + row_offset[row]) =
          *reinterpret_cast<const Run*>(element(rows_innermost, position, row));
    }
  }
};

template <class T, class Shape>
__device__ __forceinline__ void store_sum(const CorrelationParameters<T>& p, int item, Staging<T, Shape>& staging,
                                          const WarpSum<T, Shape::kWarpM>& sum) {
  using S = Staging<T, Shape>;
  const int warp = threadIdx.x / 32, lane_group = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
  const int warp_position = warp / Shape::kWarpsN * Shape::kWarpM, warp_row = warp % Shape::kWarpsN * kWarpN;
  const auto [phase, first_row, group, first_position, split] = p.template locate<Shape>(item);

  for (int i = threadIdx.x; i < Shape::kM; i += Shape::kThreads) {
    staging.position_offset[i] = kNowhere;
    if (first_position + i >= phase.position_count) continue;
    const auto located = phase.locate(first_position + i);
    int64_t offset = located.image * p.output_image_stride;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) offset += located.index[axis] * p.output_axis_stride[axis];
    staging.position_offset[i] = offset;
  }
#pragma unroll 1
  for (int part = 0; part < Shape::kN; part += S::kRows) {
    for (int i = threadIdx.x; i < S::kRows; i += Shape::kThreads) {
      int variant = first_row + part + i;
      const bool there = variant < phase.rows;
      variant += phase.first_row;
      const int row = p.rows_of_variant.divide(variant);
      int shift[3];
      phase.variants(variant, shift);
      int64_t offset = row * p.output_row_stride;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) offset += shift[axis] * p.variant_stride[axis];
      staging.row_offset[i] = there ? offset : kNowhere;
      staging.bias[i] = {};
      if (there && p.bias != nullptr)
        staging.bias[i] = convert<Accumulator<T>>(p.bias[int64_t{group} * p.rows_of_variant.divisor() + row]);
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
            *reinterpret_cast<T*>(staging.element(p.rows_innermost, warp_position + 8 * i + lane_group, row)) =
                convert<T>(sum[i][j][e] + bias);
        }
      }
    }
    __syncthreads();  // the tile is written
    T* const output = p.output + group * p.output_group_stride + phase.output_offset;
    if (p.output_pieces) {
      staging.template store<Piece<T>::kCount>(p.rows_innermost, output);
    } else {
      staging.template store<1>(p.rows_innermost, output);
    }
    __syncthreads();  // the tile and the tables are read
  }
}

}  // namespace unfoldconv::cuda
