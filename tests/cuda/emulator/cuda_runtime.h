// What the kernels use of CUDA, for a C++ compiler. Found before CUDA's header of the same name, it makes the emulator
// (emulator.h) the GPU; the sources of the kernels are compiled unchanged.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <tuple>
#include <typeinfo>

#include "emulator.h"

// --- the language ----------------------------------------------------------------------------------------------------

#define __global__
#define __host__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
// Of the thread that runs a grid: the emulator overwrites the thread's own storage before each block. For dynamic
// shared memory there is emulator::dynamic_shared().
#define __shared__ static thread_local

using std::max;
using std::min;

// --- launching -------------------------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

// Runs the whole grid before it returns. The error says what went wrong in which thread of which block.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
  return static_cast<cudaError_t>(
      emulator::launch({config->gridDim, config->blockDim, config->dynamicSmemBytes, typeid(kernel).name()},
                       [&] { std::apply(kernel, parameters); }));
}

enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0 };
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return emulator::last_error(); }

// --- one thread ------------------------------------------------------------------------------------------------------

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b >> 32; }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return static_cast<unsigned __int128>(a) * b >> 64; }
inline int __popc(uint32_t bits) { return std::popcount(bits); }

// Threads are switched at barriers and warp-wide functions only, so a plain addition is atomic.
template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}

// --- a block ---------------------------------------------------------------------------------------------------------

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  emulator::block_barrier(where);
}

// --- a warp ----------------------------------------------------------------------------------------------------------

using Where = std::source_location;

inline void __syncwarp(unsigned mask = ~0u, Where where = Where::current()) {
  emulator::warp_exchange("__syncwarp", mask, 0, where);
}

namespace emulator {
// The value of lane `source` of this thread's segment of `width` lanes; the thread's own, where that is outside of it.
template <class T, class Source>
T shuffle(const char* name, unsigned mask, T value, int width, Where where, Source&& source) {
  const auto lanes = warp_exchange(name, mask, value, where);
  const int first = lane() / width * width;
  const int from = source(lane() - first);
  return lanes->template get<T>(from < 0 || from >= width ? lane() : first + from);
}
}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, Where where = Where::current()) {
  return emulator::shuffle("__shfl_sync", mask, value, width, where, [&](int) { return source % width; });
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, Where where = Where::current()) {
  return emulator::shuffle("__shfl_up_sync", mask, value, width, where, [&](int lane) { return lane - int(delta); });
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, Where where = Where::current()) {
  return emulator::shuffle("__shfl_down_sync", mask, value, width, where, [&](int lane) { return lane + int(delta); });
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, Where where = Where::current()) {
  return emulator::shuffle("__shfl_xor_sync", mask, value, width, where, [&](int lane) { return lane ^ bits; });
}

inline unsigned __ballot_sync(unsigned mask, int predicate, Where where = Where::current()) {
  const auto lanes = emulator::warp_exchange("__ballot_sync", mask, predicate != 0, where);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (lanes->has(lane) && lanes->get<bool>(lane)) result |= 1u << lane;
  return result;
}

inline int __any_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}

inline int __all_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return __ballot_sync(mask, !predicate, where) == 0;
}
