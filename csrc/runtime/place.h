// Where kernels run.
#pragma once

namespace unfoldconv {

// Where a kernel runs: the CPU (on torch's threads) or a CUDA stream. On CUDA the pointers are device pointers and a
// call only enqueues.
struct Place {
  bool cuda = false;
  void* stream = nullptr;  // cudaStream_t
};

}  // namespace unfoldconv
