// Element types as the kernels see them, and the one switch from torch's dtype to them.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "problem/geometry.h"

namespace unfoldconv {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

// A complex number that adds alike on host and device. Layout of std::complex.
template <class T>
struct Complex {
  T real, imag;
  UNFOLDCONV_HOST_DEVICE Complex& operator+=(const Complex& other) {
    real += other.real;
    imag += other.imag;
    return *this;
  }
};

// bool under addition is "or", as in torch's fold.
struct Bool {
  bool value;
  UNFOLDCONV_HOST_DEVICE Bool& operator+=(const Bool& other) {
    value = value || other.value;
    return *this;
  }
};

// 16 bytes that are only moved.
struct alignas(16) Bytes16 {
  uint64_t low, high;
};

// The type in which values of T are summed.
template <class T>
struct AccumulatorOf {
  using type = T;
};
template <>
struct AccumulatorOf<Half> {
  using type = float;
};
template <>
struct AccumulatorOf<BFloat16> {
  using type = float;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

inline bool is_16bit_float(ScalarType dtype) { return dtype == ScalarType::Half || dtype == ScalarType::BFloat16; }

// What sums over elements of a dtype are in.
inline ScalarType compute_dtype(ScalarType dtype) { return is_16bit_float(dtype) ? ScalarType::Float : dtype; }

// Those that convolutions take.
inline bool is_integer(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Short:
    case ScalarType::Int:
    case ScalarType::Long: return true;
    default: return false;
  }
}

// A caught call: the only exception that leaves the library. The prefix lets Python tell it from torch's own.
[[noreturn]] inline void refuse(const std::string& message) { throw std::runtime_error("unfoldconv: " + message); }

template <class T>
struct Type {
  using type = T;
};

// Bytes of one element, or 0 for a dtype that is not a plain number (quantised, sub-byte).
inline int64_t element_size(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Bool:
    case ScalarType::Byte:
    case ScalarType::Char:
    case ScalarType::Float8_e4m3fn:
    case ScalarType::Float8_e4m3fnuz:
    case ScalarType::Float8_e5m2:
    case ScalarType::Float8_e5m2fnuz:
    case ScalarType::Float8_e8m0fnu: return 1;
    case ScalarType::Short:
    case ScalarType::UInt16:
    case ScalarType::Half:
    case ScalarType::BFloat16: return 2;
    case ScalarType::Int:
    case ScalarType::UInt32:
    case ScalarType::Float:
    case ScalarType::ComplexHalf: return 4;
    case ScalarType::Long:
    case ScalarType::UInt64:
    case ScalarType::Double:
    case ScalarType::ComplexFloat: return 8;
    case ScalarType::ComplexDouble: return 16;
    default: return 0;
  }
}

// Calls f(Type<T>{}) with an integer (or 16-byte struct) as wide as the dtype.
template <class F>
void dispatch_bytes(ScalarType dtype, F&& f) {
  switch (element_size(dtype)) {
    case 1: return f(Type<uint8_t>{});
    case 2: return f(Type<uint16_t>{});
    case 4: return f(Type<uint32_t>{});
    case 8: return f(Type<uint64_t>{});
    case 16: return f(Type<Bytes16>{});
    default: refuse(std::string("dtype must be a plain number type, but got ") + torch::headeronly::toString(dtype));
  }
}

// Calls f(Type<T>{}) with the type in which the dtype is added.
template <class F>
void dispatch_sum(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Bool: return f(Type<Bool>{});
    case ScalarType::Byte:
    case ScalarType::Char: return f(Type<uint8_t>{});  // two's complement: signed sums are the same bits
    case ScalarType::Short:
    case ScalarType::UInt16: return f(Type<uint16_t>{});
    case ScalarType::Int:
    case ScalarType::UInt32: return f(Type<uint32_t>{});
    case ScalarType::Long:
    case ScalarType::UInt64: return f(Type<uint64_t>{});
    case ScalarType::Half: return f(Type<Half>{});
    case ScalarType::BFloat16: return f(Type<BFloat16>{});
    case ScalarType::Float: return f(Type<float>{});
    case ScalarType::Double: return f(Type<double>{});
    case ScalarType::ComplexFloat: return f(Type<Complex<float>>{});
    case ScalarType::ComplexDouble: return f(Type<Complex<double>>{});
    default: refuse(std::string("dtype must be one that can be added, but got ") + torch::headeronly::toString(dtype));
  }
}

// Calls f(Type<From>{}, Type<To>{}) for im2col: the same type, or a 16-bit float widened to float.
template <class F>
void dispatch_gather(ScalarType from, ScalarType to, F&& f) {
  if (from == to) return dispatch_bytes(from, [&](auto type) { f(type, type); });
  if (from == ScalarType::Half && to == ScalarType::Float) return f(Type<Half>{}, Type<float>{});
  if (from == ScalarType::BFloat16 && to == ScalarType::Float) return f(Type<BFloat16>{}, Type<float>{});
  refuse(std::string("cannot gather ") + torch::headeronly::toString(from) + " as " + torch::headeronly::toString(to));
}

// Calls f(Type<From>{}, Type<To>{}) for store: the same type, or float rounded to a 16-bit float.
template <class F>
void dispatch_store(ScalarType from, ScalarType to, F&& f) {
  if (from == to) return dispatch_sum(from, [&](auto type) { f(type, type); });
  if (from == ScalarType::Float && to == ScalarType::Half) return f(Type<float>{}, Type<Half>{});
  if (from == ScalarType::Float && to == ScalarType::BFloat16) return f(Type<float>{}, Type<BFloat16>{});
  refuse(std::string("cannot store ") + torch::headeronly::toString(from) + " as " + torch::headeronly::toString(to));
}

}  // namespace unfoldconv
