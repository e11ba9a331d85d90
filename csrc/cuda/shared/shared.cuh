// The dynamic shared memory of a block.
#pragma once

#include <cuda_runtime.h>

namespace unfoldconv::cuda {

// What a launch may ask for on every GPU without asking the driver for more.
constexpr int64_t kSharedBytes = 48 << 10;

// Its beginning, which is aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ uint4 dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#else
  return static_cast<T*>(emulator::dynamic_shared());
#endif
}

}  // namespace unfoldconv::cuda
