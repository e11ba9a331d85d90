// Matrix products of integers, which torch lacks on CUDA.
//
//   left      [batch, rows, depth], of any strides
//   right     [batch, depth, cols], of any strides
//   product   [batch, rows, cols], contiguous
//
//   product[b, m, n] = sum over k of left[b, m, k] * right[b, k, n]      modulo 2^bits
//
// Sums and products modulo 2^32 are right modulo every smaller power of two, and two's complement makes no difference
// between signed and unsigned ones: so elements of up to 4 bytes become unsigned integers of 4 as they are loaded.
//
// A block owns a tile of one product, and each of its threads kPart by kPart elements of that: every element is written
// by one thread. Chunks of the depth of both operands pass through shared memory. Indices have 64 bits throughout.
#include "cuda/integers/integer_products.h"
#include "cuda/shared/index.cuh"
#include "cuda/shared/launch.cuh"

namespace unfoldconv::cuda {
namespace {

constexpr int kSide = 64;   // rows and cols of a tile
constexpr int kDepth = 16;  // of a chunk
constexpr int kPart = 4;
constexpr int kParts = kSide / kPart;
static_assert(kParts * kParts == kThreads && kSide * kDepth % kThreads == 0);

template <class T>
using Sum = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

// A chunk in shared memory; the padding keeps threads that go along the depth out of each other's banks.
template <class S>
struct Chunk {
  alignas(16) S values[kDepth][kSide + 16 / sizeof(S)];
};

// Either operand: [batch, side, depth], where the side is rows or cols.
template <class T>
struct Operand {
  const T* data;
  int64_t side, batch_stride, side_stride, depth_stride;
};

// Carries the chunks of one tile to shared memory, one after the other, with zeros beyond the matrix. Neighbouring
// threads read neighbours in memory.
template <class T>
class TileLoader {
 public:
  __device__ __forceinline__ TileLoader(const Operand<T>& operand, int64_t batch, int64_t first)
      : chunk_stride_(kDepth * operand.depth_stride) {
    const bool depth_innermost = operand.depth_stride < operand.side_stride;
    const int thread = threadIdx.x;
    at_ = depth_innermost ? thread / kDepth : thread % kSide;
    depth_ = depth_innermost ? thread % kDepth : thread / kSide;
    at_step_ = depth_innermost ? kThreads / kDepth : 0;
    depth_step_ = depth_innermost ? 0 : kThreads / kSide;
    stride_ = at_step_ * operand.side_stride + depth_step_ * operand.depth_stride;
    count_ = static_cast<int>(min(operand.side - first, int64_t{kSide}));
    next_ = operand.data + batch * operand.batch_stride + (first + at_) * operand.side_stride +
            depth_ * operand.depth_stride;
  }

  // Of the tile's side, those that there are.
  __device__ __forceinline__ int count() const { return count_; }

  // `depth` elements of the depth are left.
  __device__ __forceinline__ void load(int depth, Chunk<Sum<T>>& chunk) {
#pragma unroll
    for (int i = 0; i < kSide * kDepth / kThreads; ++i) {
      const int at = at_ + i * at_step_, of_depth = depth_ + i * depth_step_;
      chunk.values[of_depth][at] = at < count_ && of_depth < depth ? next_[i * stride_] : 0;
    }
    next_ += chunk_stride_;
  }

 private:
  const T* next_;
  int64_t stride_, chunk_stride_;
  int at_, depth_, at_step_, depth_step_;  // of this thread's first element, and from each to its next
  int count_;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    multiply(const __grid_constant__ Operand<T> left, const __grid_constant__ Operand<T> right, int64_t depth,
             T* __restrict__ product, const __grid_constant__ Divider<int64_t> row_tiles,
             const __grid_constant__ Divider<int64_t> col_tiles, int64_t tiles) {
  __shared__ Chunk<Sum<T>> left_chunk, right_chunk;
  const int row_part = threadIdx.x / kParts * kPart, col_part = threadIdx.x % kParts * kPart;

  for_each_tile(tiles, [&](int64_t batch) {
    const int64_t first_col = col_tiles.divide(batch) * kSide, first_row = row_tiles.divide(batch) * kSide;
    Sum<T> sum[kPart][kPart] = {};
    TileLoader<T> left_tile(left, batch, first_row), right_tile(right, batch, first_col);
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int rest = static_cast<int>(min(depth - k, int64_t{kDepth}));
      __syncthreads();  // the last chunk has been read
      left_tile.load(rest, left_chunk);
      right_tile.load(rest, right_chunk);
      __syncthreads();  // this one is written
#pragma unroll 4
      for (int i = 0; i < kDepth; ++i)
#pragma unroll
        for (int row = 0; row < kPart; ++row)
#pragma unroll
          for (int col = 0; col < kPart; ++col)
            sum[row][col] += left_chunk.values[i][row_part + row] * right_chunk.values[i][col_part + col];
    }
    T* to = product + (batch * left.side + first_row + row_part) * right.side + first_col + col_part;
    const int rows = left_tile.count() - row_part, cols = right_tile.count() - col_part;
#pragma unroll
    for (int row = 0; row < kPart; ++row, to += right.side)
#pragma unroll
      for (int col = 0; col < kPart; ++col)
        if (row < rows && col < cols) to[col] = static_cast<T>(sum[row][col]);
  });
}

template <class T>
void launch_products(void* stream, int64_t batch, const Matrices& left, const Matrices& right, void* product) {
  const int64_t row_tiles = ceil_div(left.rows, kSide), col_tiles = ceil_div(right.cols, kSide);
  const int64_t tiles = batch * row_tiles * col_tiles;
  launch(
      multiply<T>, Grid{tiles}, stream,
      Operand<T>{static_cast<const T*>(left.data), left.rows, left.batch_stride, left.row_stride, left.col_stride},
      Operand<T>{static_cast<const T*>(right.data), right.cols, right.batch_stride, right.col_stride, right.row_stride},
      left.cols, static_cast<T*>(product), Divider<int64_t>(row_tiles), Divider<int64_t>(col_tiles), tiles);
}

}  // namespace

void multiply_integers(void* stream, int64_t batch, const Matrices& left, const Matrices& right, void* product,
                       int64_t element_bytes) {
  switch (element_bytes) {
    case 1: return launch_products<uint8_t>(stream, batch, left, right, product);
    case 2: return launch_products<uint16_t>(stream, batch, left, right, product);
    case 4: return launch_products<uint32_t>(stream, batch, left, right, product);
    default: return launch_products<uint64_t>(stream, batch, left, right, product);
  }
}

}  // namespace unfoldconv::cuda
