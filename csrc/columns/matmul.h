// Matrix products by torch's own GEMM, on memory that need not be a tensor; of integers on CUDA, for which torch has
// none there, by a function that the caller brings.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>

#include "problem/matrices.h"
#include "problem/scalar.h"
#include "runtime/place.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.11 has it under its older name
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace unfoldconv {

using torch::stable::Tensor;

// product[b] = left[b] @ right[b] for b < batch; product is row-major and contiguous.
using MultiplyIntegers = void (*)(void* stream, int64_t batch, const Matrices& left, const Matrices& right,
                                  void* product, int64_t element_bytes);

// Products of one dtype on one device.
struct MatrixMultiplier {
  ScalarType dtype;
  torch::stable::Device device;
  MultiplyIntegers integers;  // used on CUDA alone

  // As above.
  void operator()(const Place& place, int64_t batch, const Matrices& left, const Matrices& right, void* product) const {
    if (place.cuda && is_integer(dtype))
      return integers(place.stream, batch, left, right, product, element_size(dtype));
    using torch::stable::detail::from;
    std::array<StableIValue, 3> stack{from(tensor(batch, left)), from(tensor(batch, right)),
                                      from(tensor(batch, row_major(product, left.rows, right.cols)))};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher(batch == 1 ? "aten::mm" : "aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
    torch::stable::detail::to<Tensor>(stack[0]);  // takes back the reference that the call returned
  }

 private:
  Tensor tensor(int64_t batch, const Matrices& m) const {
    void* const data = const_cast<void*>(m.data);
    if (batch == 1) {
      const int64_t sizes[] = {m.rows, m.cols}, strides[] = {m.row_stride, m.col_stride};
      return torch::stable::from_blob(data, sizes, strides, device, dtype);
    }
    const int64_t sizes[] = {batch, m.rows, m.cols}, strides[] = {m.batch_stride, m.row_stride, m.col_stride};
    return torch::stable::from_blob(data, sizes, strides, device, dtype);
  }
};

}  // namespace unfoldconv
