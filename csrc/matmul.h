// Matrix products by torch's own GEMM, on memory that need not be a tensor.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>

#include "scalar.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.11 has it under its older name
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace unfoldconv {

using torch::stable::Tensor;

// A batch of matrices [batch, rows, cols] with strides in elements.
struct Matrices {
  const void* data;
  int64_t rows, cols;
  int64_t batch_stride, row_stride, col_stride;
};

inline Matrices row_major(const void* data, int64_t rows, int64_t cols) {
  return {data, rows, cols, rows * cols, cols, 1};
}

inline Matrices transposed(const Matrices& m) {
  return {m.data, m.cols, m.rows, m.batch_stride, m.col_stride, m.row_stride};
}

// product[b] = left[b] @ right[b] for b < batch; product is row-major and contiguous.
inline void multiply(int64_t batch, const Matrices& left, const Matrices& right, void* product, ScalarType dtype,
                     torch::stable::Device device) {
  const auto tensor = [&](const Matrices& m) {
    void* data = const_cast<void*>(m.data);
    if (batch == 1) {
      const int64_t sizes[] = {m.rows, m.cols}, strides[] = {m.row_stride, m.col_stride};
      return torch::stable::from_blob(data, sizes, strides, device, dtype);
    }
    const int64_t sizes[] = {batch, m.rows, m.cols}, strides[] = {m.batch_stride, m.row_stride, m.col_stride};
    return torch::stable::from_blob(data, sizes, strides, device, dtype);
  };
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(tensor(left)), from(tensor(right)),
                                    from(tensor(row_major(product, left.rows, right.cols)))};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(batch == 1 ? "aten::mm" : "aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes back the reference that the call returned
}

}  // namespace unfoldconv
