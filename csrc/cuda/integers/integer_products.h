// Matrix products of integers on CUDA, as host code calls them.
#pragma once

#include <cstdint>

#include "problem/matrices.h"

namespace unfoldconv::cuda {

// product[b] = left[b] @ right[b] for b < batch, modulo 2^bits; product is row-major and contiguous. Elements are
// integers of 1, 2, 4 or 8 bytes, signed or not.
void multiply_integers(void* stream, int64_t batch, const Matrices& left, const Matrices& right, void* product,
                       int64_t element_bytes);

}  // namespace unfoldconv::cuda
