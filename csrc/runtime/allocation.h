// New tensors, without the detour of a call by name.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <span>

#include "problem/scalar.h"
#include "runtime/huge_pages.h"

namespace unfoldconv {

using torch::stable::Tensor;

constexpr int kMostDims = 5;  // of any result: a batch, channels and three axes

// Sizes and strides of a tensor to be made.
struct Extents {
  int64_t dim;
  int64_t sizes[kMostDims], strides[kMostDims];
};

inline Extents contiguous_extents(std::span<const int64_t> sizes) {
  Extents result{static_cast<int64_t>(sizes.size()), {}, {}};
  int64_t step = 1;
  for (size_t axis = sizes.size(); axis-- > 0; step *= std::max<int64_t>(1, sizes[axis]))
    result.sizes[axis] = sizes[axis], result.strides[axis] = step;
  return result;
}

// [batch, channels, *axes] in memory as [batch, *axes, channels].
inline Extents channels_last_extents(std::span<const int64_t> sizes) {
  Extents result{static_cast<int64_t>(sizes.size()), {}, {}};
  std::copy(sizes.begin(), sizes.end(), result.sizes);
  result.strides[1] = 1;
  int64_t step = sizes[1];
  for (size_t axis = sizes.size(); axis-- > 2; step *= sizes[axis]) result.strides[axis] = step;
  result.strides[0] = step;
  return result;
}

// An uninitialised tensor on the device of `like`.
inline Tensor empty_tensor(const Tensor& like, const Extents& extents, ScalarType dtype) {
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto dtype_code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(extents.dim, extents.sizes, extents.strides, dtype_code,
                                                         device_type, like.get_device_index(), &handle));
  Tensor result(handle);
  int64_t bytes = element_size(dtype);
  for (int64_t axis = 0; axis < extents.dim; ++axis) bytes *= extents.sizes[axis];
  if (bytes >= cpu::kHugeBytes && device_type == aoti_torch_device_type_cpu())
    cpu::ask_for_huge_pages(result.data_ptr(), bytes);
  return result;
}

// Uninitialised memory, at least one byte, on the device of `like`.
inline Tensor empty_bytes(int64_t bytes, const Tensor& like) {
  return empty_tensor(like, {1, {std::max<int64_t>(bytes, 1)}, {1}}, ScalarType::Byte);
}

}  // namespace unfoldconv
