// The micro-kernel of tile_kernels.h.
#include "cpu/kernels/dot.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

constexpr int kTileRows = 6, kTallTileRows = 9;

// c = start + sum, and sum = 0.
template <class Sum, int Rows, int Vectors>
UNFOLDCONV_INLINE void flush(Vector<Sum> (&sum)[Rows][Vectors], Start start, const Sum* bias, Sum* c, int64_t c_step) {
  constexpr int lanes = kLanes<Sum>;
#define UNFOLDCONV_FLUSH(VALUE)                                                                                       \
  _Pragma("GCC unroll 16") for (int i = 0; i < Rows; ++i) _Pragma("GCC unroll 8") for (int j = 0; j < Vectors; ++j) { \
    store(c + i * c_step + j * lanes, VALUE + sum[i][j]);                                                             \
    sum[i][j] = Vector<Sum>{};                                                                                        \
  }
  switch (start) {
    case Start::zero: UNFOLDCONV_FLUSH(Vector<Sum>{}) break;
    case Start::sum: UNFOLDCONV_FLUSH(load(c + i * c_step + j * lanes)) break;
    case Start::row_bias: UNFOLDCONV_FLUSH(broadcast(bias[i])) break;
    case Start::lane_bias: UNFOLDCONV_FLUSH(load(bias + j * lanes)) break;
  }
#undef UNFOLDCONV_FLUSH
}

template <class T, int Rows, int Vectors>
void tile(const TileArguments<T>& arguments, int /*rows*/) {
  using Sum = typename SumOf<T>::type;
  constexpr int lanes = kLanes<Sum>;
  Vector<Sum> sum[Rows][Vectors] = {};
  Start start = arguments.start;
  bool flushed = false;
  const int64_t b_step = arguments.b_step;
  for (const Run<T>*run = arguments.runs, *end = run + arguments.run_count; run != end; ++run) {
    const T* a[Rows];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) a[i] = run->a[arguments.first_row + i] + arguments.a_offset;
    const T* b = arguments.b + run->b * arguments.b_unit;
    for (int64_t k = 0; k < run->length;) {
      const int64_t block_end = run->length - k <= kBlockTerms<T> ? run->length : k + kBlockTerms<T>;
      for (; k < block_end; ++k, b += b_step) {
        decltype(load_row(b)) row[Vectors];
#pragma GCC unroll 8
        for (int j = 0; j < Vectors; ++j) row[j] = load_row(b + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 8
          for (int j = 0; j < Vectors; ++j) sum[i][j] = multiply_add(a[i][k], row[j], sum[i][j]);
      }
      if (k < run->length || run->ends_block) {
        flush<Sum, Rows, Vectors>(sum, start, arguments.bias, arguments.c, arguments.c_step);
        start = Start::sum;
        flushed = true;
      } else {
        flushed = false;
      }
    }
  }
  if (!flushed) flush<Sum, Rows, Vectors>(sum, start, arguments.bias, arguments.c, arguments.c_step);
}

template <class T>
constexpr Tiles<T> tiles() {
  Tiles<T> result{kLanes<typename SumOf<T>::type>,
                  kMostVectors,
                  kTileRows,
                  1,
                  nullptr,
                  nullptr,
                  {},
                  {dots<T, 1>, dots<T, 2>, dots<T, 3>, dots<T, 4>},
                  tile<T, kTallTileRows, 1>,
                  kTallTileRows};
#define UNFOLDCONV_TILES(VECTORS)                                                          \
  if constexpr (VECTORS <= kMostVectors) {                                                 \
    const Tile<T> row[] = {tile<T, 1, VECTORS>, tile<T, 2, VECTORS>, tile<T, 3, VECTORS>,  \
                           tile<T, 4, VECTORS>, tile<T, 5, VECTORS>, tile<T, 6, VECTORS>}; \
    for (int i = 0; i < kTileRows; ++i) result.tile[VECTORS - 1][i] = row[i];              \
  }
  UNFOLDCONV_TILES(1)
  UNFOLDCONV_TILES(2)
  UNFOLDCONV_TILES(3)
  UNFOLDCONV_TILES(4)
#undef UNFOLDCONV_TILES
  return result;
}

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
