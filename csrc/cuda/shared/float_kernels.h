// The dtypes that the kernels for convolutions on CUDA have; integers and complex numbers are multiplied by columns.
#pragma once

#include <string>

#include "problem/scalar.h"

namespace unfoldconv::cuda {

inline bool has_float_kernels(ScalarType dtype) {
  return is_16bit_float(dtype) || dtype == ScalarType::Float || dtype == ScalarType::Double;
}

// What an engine says that declines another dtype.
constexpr const char* kNoFloatKernels = "the kernels are for float16, bfloat16, float32 and float64 only";

// Calls f(Type<T>{}) with the type of such a dtype.
template <class F>
void dispatch_float(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Half: return f(Type<Half>{});
    case ScalarType::BFloat16: return f(Type<BFloat16>{});
    case ScalarType::Float: return f(Type<float>{});
    case ScalarType::Double: return f(Type<double>{});
    default: refuse(std::string("dtype must be a floating-point type, but got ") + torch::headeronly::toString(dtype));
  }
}

}  // namespace unfoldconv::cuda
