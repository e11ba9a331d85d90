// The dot products of tile_kernels.h.
#include "cpu/kernels/products.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// Rows of `a` at a time: as many accumulators as registers allow, and at most as many sums as a vector has lanes.
template <class Sum, int Columns>
constexpr int dot_rows() {
  constexpr int most = kVectorBytes == 64 ? 6 : 3, fit = kLanes<Sum> / Columns;
  return fit < 1 ? 1 : fit < most ? fit : most;
}

template <class T>
UNFOLDCONV_INLINE Vector<T> load_first(const T* from, int count) {
  return load_lanes(from, 0, count);
}
#ifdef UNFOLDCONV_BF16_PRODUCTS
UNFOLDCONV_INLINE Vector<uint32_t> load_first(const Pair* from, int count) {
  return (Vector<uint32_t>)_mm512_maskz_loadu_epi32(static_cast<__mmask16>(~(~0u << count)), from);
}
#endif

// Lane i of the result is the sum of all lanes of values[i], added up in pairs: neighbours first.
template <class Sum>
UNFOLDCONV_INLINE Vector<Sum> add_lanes(Vector<Sum> (&values)[kLanes<Sum>]) {
  constexpr int lanes = kLanes<Sum>;
#define UNFOLDCONV_ADD(DISTANCE)                                                        \
  if constexpr (DISTANCE < lanes) {                                                     \
    _Pragma("GCC unroll 16") for (int i = 0; i < lanes; ++i) if ((i & DISTANCE) == 0) { \
      exchange<DISTANCE, Vector<Sum>, lanes>(values[i], values[i + DISTANCE]);          \
      values[i] += values[i + DISTANCE];                                                \
    }                                                                                   \
  }
  UNFOLDCONV_ADD(1)
  UNFOLDCONV_ADD(2)
  UNFOLDCONV_ADD(4)
  UNFOLDCONV_ADD(8)
#undef UNFOLDCONV_ADD
  return values[0];
}

// sum[i][j] += a[i][k] * b[j * b_step + k] for a vector of terms, or the `tail` of one that is not 0.
template <int Rows, int Columns, class T, class V>
UNFOLDCONV_INLINE void add_terms(V (&sum)[Rows][Columns], const T* const (&a)[Rows], const T* b, int64_t b_step,
                                 int64_t k, int tail) {
  decltype(load_row(b)) column[Columns];
#pragma GCC unroll 8
  for (int j = 0; j < Columns; ++j)
    column[j] = tail ? load_first(b + j * b_step + k, tail) : load_row(b + j * b_step + k);
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    const auto row = tail ? load_first(a[i] + k, tail) : load_row(a[i] + k);
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) sum[i][j] = multiply_add_lanes(row, column[j], sum[i][j]);
  }
}

template <class T, int Columns>
void dots(const TileArguments<T>& arguments, int rows) {
  using Sum = typename SumOf<T>::type;
  constexpr int lanes = kLanes<Sum>;
  constexpr int dot_count = dot_rows<Sum, Columns>();
  for (int first = 0; first < rows; first += dot_count) {
    Vector<Sum> sum[dot_count][Columns] = {};
    for (const Run<T>*run = arguments.runs, *end = run + arguments.run_count; run != end; ++run) {
      const T* a[dot_count];  // beyond the last row, that one again
#pragma GCC unroll 8
      for (int i = 0; i < dot_count; ++i) a[i] = run->a[first + i < rows ? first + i : rows - 1];
      const T* const b = arguments.b + run->b;
      int64_t k = 0;
      for (; k + lanes <= run->length; k += lanes) add_terms(sum, a, b, arguments.b_step, k, 0);
      if (k < run->length) add_terms(sum, a, b, arguments.b_step, k, static_cast<int>(run->length - k));
    }
    // The sums as lanes of as few vectors as hold them.
    constexpr int sums = dot_count * Columns, vectors = (sums + lanes - 1) / lanes;
    Sum total[vectors * lanes];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      Vector<Sum> values[lanes] = {};
      const int count = sums - v * lanes < lanes ? sums - v * lanes : lanes;
#pragma GCC unroll 16
      for (int i = 0; i < count; ++i) values[i] = sum[(v * lanes + i) / Columns][(v * lanes + i) % Columns];
      store(total + v * lanes, add_lanes<Sum>(values));
    }
    for (int i = 0; i < dot_count && first + i < rows; ++i)
      for (int j = 0; j < Columns; ++j)
        arguments.c[(first + i) * arguments.c_step + j] =
            total[i * Columns + j] + (arguments.start == Start::lane_bias ? arguments.bias[j] : Sum{});
  }
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
