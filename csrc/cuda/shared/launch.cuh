// Launching kernels: the one place where a kernel is started and where its grid and index type are chosen.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "problem/scalar.h"

namespace unfoldconv::cuda {

// What a launch may use. Tests lower the limits to send small tensors down the paths of very large ones.
struct Limits {
  double index = std::numeric_limits<int32_t>::max();    // largest number for which 32-bit indices are chosen
  int64_t blocks = std::numeric_limits<int32_t>::max();  // of a grid; CUDA's own limit along x
  int64_t busy = 128;    // as many blocks keep a large GPU busy; with fewer, smaller tiles are better
  int64_t segment = 32;  // chunks; sums of fewer are not worth a block of their own
};
inline Limits limits;

constexpr int kThreads = 256;

// For __launch_bounds__: how many blocks the compiler should make room for in a multiprocessor. 0 leaves that to its
// own judgement, by which it would rather spill the registers of 64-bit indices than make room for fewer.
template <class Index>
constexpr int kResidentBlocks = sizeof(Index) == 8 ? 4 : 0;

// One-dimensional, so that only CUDA's limit along x matters. `blocks` is what the work would fill: kernels stride
// over it by gridDim.x, because the grid may have fewer.
struct Grid {
  int64_t blocks;
  int threads = kThreads;
  int64_t shared_bytes = 0;  // of dynamic shared memory

  // One thread for each item.
  static Grid of_items(int64_t items) { return {items / kThreads + (items % kThreads != 0)}; }
};

// Enqueues kernel(arguments...) on the stream; no work, no launch.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Grid grid, void* stream, Arguments&&... arguments) {
  if (grid.blocks == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(std::min(grid.blocks, limits.blocks)));
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // reported here, so no later check of torch's may report it again
  // Not `refuse`: there was nothing wrong with the call.
  throw std::runtime_error(std::string("CUDA error while launching a kernel of unfoldconv: ") +
                           cudaGetErrorString(error));
}

// Calls f(Type<Index>{}) with the narrower of int32_t and int64_t that holds `largest`, the largest number in the
// index arithmetic of a kernel. It is a double because that cannot overflow, and is exact far beyond the limit.
template <class F>
void with_index(double largest, F&& f) {
  if (largest <= limits.index) return f(Type<int32_t>{});
  return f(Type<int64_t>{});
}

// Calls f(item) for every item of this thread. Neighbouring threads have neighbouring items of [0, count).
template <class Index, class F>
__device__ __forceinline__ void for_each_item(Index count, F&& f) {
  using Unsigned = std::make_unsigned_t<Index>;  // one step beyond the last item may not fit into Index
  const Unsigned step = static_cast<Unsigned>(gridDim.x) * blockDim.x;
  for (Unsigned item = static_cast<Unsigned>(blockIdx.x) * blockDim.x + threadIdx.x;
       item < static_cast<Unsigned>(count); item += step)
    f(static_cast<Index>(item));
}

// Calls f(tile) for every tile of this block, all of its threads alike, so f may hold barriers.
template <class Index, class F>
__device__ __forceinline__ void for_each_tile(Index count, F&& f) {
  using Unsigned = std::make_unsigned_t<Index>;
  for (Unsigned tile = blockIdx.x; tile < static_cast<Unsigned>(count); tile += gridDim.x) f(static_cast<Index>(tile));
}

}  // namespace unfoldconv::cuda
