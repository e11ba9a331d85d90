// Matrix products by torch's own GEMM, on memory that need not be a tensor; of integers on CUDA, for which torch has
// none there, by ours.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>

#include "columns/columns.h"
#include "problem/matrices.h"
#include "problem/scalar.h"
#ifdef UNFOLDCONV_WITH_CUDA
#include "cuda/integers/integer_products.h"
#endif

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.11 has it under its older name
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace unfoldconv {

using torch::stable::Tensor;

// product[b] = left[b] @ right[b] for b < batch; product is row-major and contiguous.
inline void multiply([[maybe_unused]] const Place& place, int64_t batch, const Matrices& left, const Matrices& right,
                     void* product, ScalarType dtype, torch::stable::Device device) {
#ifdef UNFOLDCONV_WITH_CUDA
  if (place.cuda && is_integer(dtype))
    return cuda::multiply_integers(place.stream, batch, left, right, product, element_size(dtype));
#endif
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
