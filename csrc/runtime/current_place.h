// From a tensor to the place where its kernels run.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "problem/scalar.h"
#include "runtime/place.h"

#ifdef UNFOLDCONV_WITH_CUDA
#include <dlfcn.h>
#endif

namespace unfoldconv {

using torch::stable::Tensor;

#ifdef UNFOLDCONV_WITH_CUDA
// torch's current stream. Its function lives in libtorch_cuda, which a CPU-only torch lacks, so the library does not
// link to it; where a CUDA tensor exists, it is loaded.
inline void* current_cuda_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Function>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
  void* stream = nullptr;
  if (function == nullptr || function(device, &stream) != AOTI_TORCH_SUCCESS)
    refuse("torch must give its current CUDA stream, but its library libtorch_cuda.so did not");
  return stream;
}

// Whether torch's own convolutions may round float32 to tf32 on CUDA: `torch.backends.cudnn.conv.fp32_precision`. The
// stable ABI does not say, so the answer is that of a function of libtorch, and no where a torch has no such function.
inline bool float32_as_tf32() {
  enum class Backend { generic, cuda };
  enum class Op { all, conv };
  enum class Precision { none, ieee, tf32 };
  using Function = Precision (*)(const void* context, Backend, Op);
  static void* const library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  static const auto context =
      reinterpret_cast<void* (*)()>(library ? dlsym(library, "_ZN2at13globalContextEv") : nullptr);
  static const auto precision = reinterpret_cast<Function>(
      library ? dlsym(library, "_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE") : nullptr);
  return context != nullptr && precision != nullptr && precision(context(), Backend::cuda, Op::conv) == Precision::tf32;
}
#endif

inline Place place_of([[maybe_unused]] const Tensor& tensor) {
#ifdef UNFOLDCONV_WITH_CUDA
  if (tensor.is_cuda()) return {true, current_cuda_stream(tensor.get_device_index())};
#endif
  return {};
}

// A bias as the kernels read it.
inline std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor) {
  if (!tensor || tensor->is_contiguous()) return tensor;
  return torch::stable::contiguous(*tensor);
}

}  // namespace unfoldconv
