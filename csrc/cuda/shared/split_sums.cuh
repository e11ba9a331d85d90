// The sums of a weight gradient whose positions are split over blocks: each split writes its own to a workspace, and a
// second kernel adds them up, in an order that follows from their number alone.
#pragma once

#include "cuda/shared/index.cuh"
#include "cuda/shared/launch.cuh"

namespace unfoldconv::cuda {
namespace {

// result[i] = sum over the splits of partial[split, i]: each of `parts` warps adds up every parts-th split, and the
// first of them what the others have found, in order.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_splits(const Accumulator<T>* __restrict__ partial, T* result, int64_t numel, int splits, int64_t blocks) {
  using A = Accumulator<T>;
  constexpr int parts = kThreads / 32;
  __shared__ A sums[parts][32];
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  for_each_tile(blocks, [&](int64_t block) {
    const int64_t item = block * 32 + lane;
    A sum{};
    if (item < numel) {
#pragma unroll 4
      for (int split = part; split < splits; split += parts) sum += partial[split * numel + item];
    }
    sums[part][lane] = sum;
    __syncthreads();
    if (part == 0 && item < numel) {
#pragma unroll
      for (int i = 1; i < parts; ++i) sum += sums[i][lane];
      result[item] = convert<T>(sum);
    }
    __syncthreads();
  });
}

// Enqueues it.
template <class T>
void launch_add_splits(void* stream, const Accumulator<T>* partial, T* result, int64_t numel, int64_t splits) {
  const int64_t blocks = ceil_div(numel, 32);
  launch(add_splits<T>, Grid{blocks}, stream, partial, result, numel, static_cast<int>(splits), blocks);
}

}  // namespace
}  // namespace unfoldconv::cuda
