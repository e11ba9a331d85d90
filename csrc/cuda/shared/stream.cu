#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "cuda/shared/stream.h"

namespace unfoldconv::cuda {
namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // reported here, so no later check of torch's may report it again
  throw std::runtime_error(std::string("CUDA error while waiting for a stream: ") + cudaGetErrorString(error));
}

}  // namespace

void synchronize(void* stream) { check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream))); }

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace unfoldconv::cuda
