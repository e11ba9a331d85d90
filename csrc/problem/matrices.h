// Matrices in memory that need not be a tensor.
#pragma once

#include <cstdint>

namespace unfoldconv {

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

}  // namespace unfoldconv
