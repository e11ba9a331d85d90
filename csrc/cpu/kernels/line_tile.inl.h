// The micro-kernel of lines (tile_kernels.h).
#include "cpu/kernels/products.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// As many accumulators as registers allow, beside the lanes of one term and one broadcast element.
constexpr int kLineRows = kVectorBytes == 64 ? 8 : 4;

template <class T, int Vectors>
void line_tile(const LineTileArguments<T>& arguments) {
  constexpr int lanes = kLanes<T>;
  Vector<T> sum[kLineRows][Vectors] = {};
  const T* a = arguments.a;
  const int64_t lane = arguments.lane;
  for (const T *const *b = arguments.b, *const *const end = b + arguments.terms; b != end; ++b, a += kLineRows) {
    Vector<T> row[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) row[j] = load(*b + lane + j * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < kLineRows; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; ++j) sum[i][j] = multiply_add(a[i], row[j], sum[i][j]);
  }
  T* const c = arguments.c + lane;
  const int64_t c_step = arguments.c_step;
#pragma GCC unroll 8
  for (int i = 0; i < kLineRows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; ++j) {
      T* const to = c + i * c_step + j * lanes;
      store(to, (arguments.bias ? broadcast(arguments.bias[i]) : load(to)) + sum[i][j]);
    }
}

template <class T>
constexpr LineTiles<T> line_tiles() {
  return {kLanes<T>, kLineRows, {line_tile<T, 1>, line_tile<T, 2>, line_tile<T, 3>}};
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
