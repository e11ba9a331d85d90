// Small kernels, right and wrong, that prove the emulator itself and what launch.cuh and index.cuh compute.
#include "cuda/shared/index.cuh"
#include "cuda/shared/launch.cuh"
#include "probes.h"

namespace unfoldconv::cuda {
namespace {

constexpr unsigned kFullWarp = 0xffffffff;
constexpr int kMost = 1024;  // threads of a block

// Each reverses [blockDim.x] through shared memory.

__global__ void reverse(const int* in, int* out) {
  __shared__ int shared[kMost];
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_without_barrier(const int* in, int* out) {
  __shared__ int shared[kMost];
  shared[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_behind_warp_barrier(const int* in, int* out) {
  __shared__ int shared[kMost];
  shared[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  __syncwarp();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_in_dynamic_memory(const int* in, int* out) {
  auto* shared = static_cast<int*>(emulator::dynamic_shared());
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// Barriers that not all threads reach.

__global__ void return_before_barrier(const int*, int* out) {
  if (threadIdx.x == 3) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void wait_at_two_barriers(const int*, int* out) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void wait_for_half_a_warp(const int*, int* out) {
  if (threadIdx.x < 16) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void wait_for_another_mask(const int*, int* out) {
  const bool low = threadIdx.x % 32 < 16;
  out[threadIdx.x] = __ballot_sync(low ? kFullWarp : 0xffff0000u, 1);
}

__global__ void call_without_own_lane(const int*, int* out) { out[threadIdx.x] = __ballot_sync(0x0000ffffu, 1); }

// Memory.

__global__ void read_unwritten_shared(const int*, int* out) {
  __shared__ int fixed[kMost];
  auto* dynamic = static_cast<int*>(emulator::dynamic_shared());
  out[threadIdx.x] = fixed[threadIdx.x] & dynamic[threadIdx.x];
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 0;
}

__global__ void leave_static_array(const int* in, int* out) {
  __shared__ int shared[16];
  shared[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = shared[threadIdx.x];
}

__global__ void leave_dynamic_memory(const int* in, int*) {
  static_cast<int*>(emulator::dynamic_shared())[threadIdx.x + 1] = in[threadIdx.x];
}

__global__ void overflow(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x] + 0x7fffffff; }

// Warp-wide functions.

__global__ void shuffle_index(const int* in, int* out) {
  out[threadIdx.x] = __shfl_sync(kFullWarp, in[threadIdx.x], threadIdx.x + 1, 8);
}
__global__ void shuffle_up(const int* in, int* out) {
  out[threadIdx.x] = __shfl_up_sync(kFullWarp, in[threadIdx.x], 3, 16);
}
__global__ void shuffle_down(const int* in, int* out) {
  out[threadIdx.x] = __shfl_down_sync(kFullWarp, in[threadIdx.x], 5);
}
__global__ void sum_by_xor(const int* in, int* out) {
  int sum = in[threadIdx.x];
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kFullWarp, sum, bits);
  out[threadIdx.x] = sum;
}
__global__ void vote(const int* in, int* out) {
  const bool odd = in[threadIdx.x] % 2 != 0;
  const unsigned ballot = __ballot_sync(kFullWarp, odd);
  const bool any = __any_sync(kFullWarp, odd), all = __all_sync(kFullWarp, odd);
  out[threadIdx.x] = any ? (all ? 100 : 0) + __popc(ballot) : -1;
}
// The halves of a warp vote apart, and one may run ahead of the other.
__global__ void vote_in_halves(const int* in, int* out) {
  const unsigned half = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  const unsigned odd = __ballot_sync(half, in[threadIdx.x] % 2 != 0);
  __syncwarp();
  out[threadIdx.x] = __popc(odd);
}

__global__ void add_atomically(const int* in, int* out) { atomicAdd(out, in[threadIdx.x]); }

// launch.cuh: each thread counts its items and its block's tiles.
__global__ void count_items(const int* in, int* out) {
  for_each_item(in[0], [&](int item) { out[item] += 1; });
  for_each_tile(in[1], [&](int tile) { atomicAdd(out + in[0] + tile, 1); });
}

const std::map<std::string, Kernel> kKernels = {
    {"reverse", reverse},
    {"reverse_without_barrier", reverse_without_barrier},
    {"reverse_behind_warp_barrier", reverse_behind_warp_barrier},
    {"reverse_in_dynamic_memory", reverse_in_dynamic_memory},
    {"return_before_barrier", return_before_barrier},
    {"wait_at_two_barriers", wait_at_two_barriers},
    {"wait_for_half_a_warp", wait_for_half_a_warp},
    {"wait_for_another_mask", wait_for_another_mask},
    {"call_without_own_lane", call_without_own_lane},
    {"read_unwritten_shared", read_unwritten_shared},
    {"leave_static_array", leave_static_array},
    {"leave_dynamic_memory", leave_dynamic_memory},
    {"overflow", overflow},
    {"shuffle_index", shuffle_index},
    {"shuffle_up", shuffle_up},
    {"shuffle_down", shuffle_down},
    {"sum_by_xor", sum_by_xor},
    {"vote", vote},
    {"vote_in_halves", vote_in_halves},
    {"add_atomically", add_atomically},
    {"count_items", count_items},
};

template <class Index>
__global__ void divide(const int64_t* dividends, int64_t* quotients, int64_t* remainders, Divider<Index> divider) {
  Index quotient = dividends[threadIdx.x];
  remainders[threadIdx.x] = divider.divide(quotient);
  quotients[threadIdx.x] = quotient;
}

}  // namespace

void probe(const std::string& name, const std::vector<unsigned>& grid, const std::vector<unsigned>& block,
           size_t shared_bytes, const int* in, int* out) {
  const cudaLaunchConfig_t config = {
      {grid.at(0), grid.at(1), grid.at(2)}, {block.at(0), block.at(1), block.at(2)}, shared_bytes, nullptr};
  const auto& instructions = instruction_kernels();
  const Kernel kernel = kKernels.contains(name) ? kKernels.at(name) : instructions.at(name);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, in, out);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

void probe_launch(const std::string& name, int64_t blocks, const int* in, int* out) {
  launch(kKernels.at(name), Grid{blocks}, nullptr, in, out);
}

void probe_divider(int bits, int count, const int64_t* dividends, int64_t divisor, int64_t* quotients,
                   int64_t* remainders) {
  const Grid grid = {1, count};
  if (bits == 32) {
    launch(divide<int32_t>, grid, nullptr, dividends, quotients, remainders, Divider<int32_t>(divisor));
  } else {
    launch(divide<int64_t>, grid, nullptr, dividends, quotients, remainders, Divider<int64_t>(divisor));
  }
}

void set_limits(double index, int64_t blocks, int64_t busy, int64_t segment) {
  limits = {index, blocks, busy, segment};
}

}  // namespace unfoldconv::cuda
