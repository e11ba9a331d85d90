// The micro-kernel of the matrix engines: one tile of a product, held in registers over the whole sum.
//
//   c[i, j] = start[i, j] + sum over runs and k < run.length of run.a[first_row + i][k] * b[run.b * b_unit + k * b_step
//   + j]
//
// i counts up to Tiles::rows rows, j the lanes of up to kTileVectors vectors. Terms are summed in blocks, each from 0
// and one product after the other, and the blocks are added up: rounding errors grow with the length of a block and the
// number of blocks, not with their product (Higham, "The accuracy of floating point summation", 1993). A block ends
// after kBlockTerms terms of a run, and with a run that says so; an instance whose instructions sum shorter blocks by
// themselves (amx_tile.inl.h) has those. Nothing in this depends on the sizes of the tile, nor does an element of
// the result.
#pragma once

#include <cstdint>

#include "problem/scalar.h"

namespace unfoldconv::cpu {

constexpr int kTileVectors = 4;
template <class T>
constexpr int64_t kBlockTerms = 64;

// Two neighbouring bfloat16 of a sum, multiplied and added in one step.
struct Pair {
  uint16_t low, high;
};

// Their results are rounded to 8 bits, beside which the errors of long sums in float do not show.
template <>
inline constexpr int64_t kBlockTerms<Pair> = 256;

template <class T>
struct SumOf {
  using type = T;
};
template <>
struct SumOf<Pair> {
  using type = float;
};

// The most rows that a tile of any instance has.
template <class T>
constexpr int kMostTileRows = 6;
template <>
inline constexpr int kMostTileRows<Pair> = 32;

// A stretch of the sum whose terms lie in a line: for each row of the tile, and as consecutive rows of b.
template <class T>
struct Run {
  const T* const* a;  // [first_row + rows]
  int64_t b;          // where the first row of b begins, in units of b_unit
  int64_t length;     // terms
  bool ends_block;
};

// What a tile adds to.
enum class Start {
  zero,
  sum,        // what stands in c
  row_bias,   // bias[i]
  lane_bias,  // bias[j]
};

template <class T>
struct TileArguments {
  using Sum = typename SumOf<T>::type;
  const Run<T>* runs;
  int64_t run_count;
  int64_t a_offset;  // of every a, in elements
  const T* b;
  int64_t b_unit, b_step;  // in elements
  Sum* c;                  // whole vectors are written by a tile
  int64_t c_step;
  Start start;
  const Sum* bias;
  int64_t first_row = 0;  // of every a
};

template <class T>
using Tile = void (*)(const TileArguments<T>&, int rows);

// The same for a few columns, with neighbouring terms in the lanes, wherever they begin:
//
//   c[i * c_step + j] = start[j] + sum over runs and k < run.length of run.a[i][k] * b[j * b_step + run.b + k]
//
// for i < rows. It starts from 0 or from lane_bias, and each lane sums its terms in order before the lanes are added
// up.
template <class T>
using Dots = Tile<T>;

constexpr int kDotColumns = 4;

template <class T>
struct Tiles {
  int lanes;        // of a vector
  int vectors;      // of the widest tile; 0 where the instance has none
  int rows;         // of the tallest
  int depth;        // terms that are multiplied at a time: a run of a multiple wastes none
  void (*enter)();  // what a thread calls before its first tile and after its last, unless null
  void (*leave)();
  Tile<T> tile[kTileVectors][kMostTileRows<T>];  // by vectors and rows, each less one
  Dots<T> dots[kDotColumns];                     // by columns less one; null where there are none
  // A taller tile of one vector, for so few lanes that the sums of the others wait for each other; or null.
  Tile<T> tall = nullptr;
  int tall_rows = 0;
};

// The same where each term has its lanes anywhere in memory, for all rows of a tile:
//
//   c[i * c_step + lane + j] = start[i, j] + sum over k < terms of a[k * rows + i] * b[k][lane + j]
//
// It starts from bias[i], or without one from what stands in c. It is one block of a sum.
template <class T>
struct LineTileArguments {
  const T* a;
  const T* const* b;
  int64_t terms, lane;
  T* c;
  int64_t c_step;
  const T* bias;
};

constexpr int kLineVectors = 3;

template <class T>
struct LineTiles {
  int lanes;  // of a vector
  int rows;
  void (*tile[kLineVectors])(const LineTileArguments<T>&);  // by vectors less one
};

// The same for patches that are a few strips each, every strip a line of elements, which begin `step` elements further
// in each patch than in the one before. With output channels in the lanes, and written as they are to lie in memory:
//
//   to[i * to_step + j] = bias[j] + sum over strips s and k < length of strip[s][i * step + k] * b[s, k][j]
//
// for i < count and j < lanes. The terms of a strip are rows of b, a vector or more wide; of Pairs, the last of an odd
// number of elements is filled up by 0, and one element beyond a strip may be read. A strip that is
// null is all 0. A block of the sum ends after each kBlockTerms terms.
template <class T>
struct ElementOf {
  using type = T;
};
template <>
struct ElementOf<Pair> {
  using type = uint16_t;
};

template <class T, class To>
struct StripArguments {
  const typename ElementOf<T>::type* const* strip;
  int64_t strips, length, step;
  const T* b;
  const typename SumOf<T>::type* bias;  // of whole vectors
  To* to;
  int64_t to_step, count;
  int lanes;
};

template <class T, class To>
struct StripTiles {
  int lanes;                                                 // of a vector
  int vectors;                                               // of the widest; 0 where the instance has none
  void (*tile[kTileVectors])(const StripArguments<T, To>&);  // by vectors less one
};

// Adds up what neighbouring windows leave where they overlap:
//
//   to[p * chunk + e] = start[e] + sum over sources of from[p * pitch + e]
//
// for p < count and e < chunk, of each source the first `width` elements of a chunk. Elements are written in ascending
// order; those of a vector beyond the last may be overwritten.
template <class T>
struct FoldSource {
  const T* from;
  int64_t width;
};

template <class T>
struct FoldArguments {
  const FoldSource<T>* sources;
  int64_t source_count, pitch;
  const T* start;  // whole vectors are read
  T* to;
  int64_t chunk, count;
};

template <class T>
using Fold = void (*)(const FoldArguments<T>&);

struct TileKernels {
  Tiles<float> f32;
  Tiles<double> f64;
  Tiles<Pair> bf16;
  LineTiles<float> f32_lines;
  LineTiles<double> f64_lines;
  StripTiles<float, float> f32_strips;
  StripTiles<double, double> f64_strips;
  StripTiles<float, BFloat16> bf16_as_f32_strips;
  StripTiles<float, Half> f16_as_f32_strips;
  StripTiles<Pair, BFloat16> bf16_strips;
  Fold<float> f32_fold;
  Fold<double> f64_fold;
};

}  // namespace unfoldconv::cpu
