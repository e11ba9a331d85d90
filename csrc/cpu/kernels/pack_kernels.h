// Moving elements into the panels that the micro-kernel reads, and tiles out of registers into a result.
//
// T is what the micro-kernel multiplies, From the dtype in memory: 16-bit floats are widened, or bfloat16 paired, on
// the way.
#pragma once

#include <cstdint>

#include "cpu/kernels/tile_kernels.h"
#include "problem/scalar.h"

namespace unfoldconv::cpu {

// Lanes [begin, end) of a vector read from[offset + lane * step].
struct Piece {
  int64_t offset;
  int32_t begin, end;
};

// What fills the panel at one tap: the pieces of each of its vectors, which lie one after the other. Lanes that no
// piece covers are 0.
struct TapPieces {
  const Piece* pieces;
  int32_t count[kTileVectors];
};

// Terms [first, first + count) of the sums of one panel: panel[term - first][vectors * lanes]. Term k is tap k % taps
// of channel k / taps; of Pairs there are half as many terms, and the one beyond the last of an odd number is 0.
template <class From>
struct PanelArguments {
  const From* from;  // of channel 0
  int64_t channel_stride, step;
  int64_t channels, taps;
  int64_t first, count;
  const TapPieces* tap_pieces;
  int vectors;
};

// A matrix [lanes, terms] that becomes [terms, lanes]. Element (lane, term) lies at from[lane * lane_stride + term *
// term_stride] and goes to row (term % period) * (terms / period) + term / period. A row of Pairs holds two terms, the
// last of an odd number filled up by 0. Lanes from `lanes` up to the `width` of a row of `to` become 0.
template <class From>
struct TransposeArguments {
  const From* from;
  int64_t lane_stride, term_stride;
  int64_t lanes, terms, width;
  int64_t period = 1;  // 1 for Pairs
};

// What pack.lines may overwrite beyond the last line, in bytes.
constexpr int64_t kLinesSlack = 64;

// Patches at neighbouring positions, all of whose taps read inside the image, as lines of elements: line[i][row *
// row_length + j] = from[i * step + row_offset[row] + j]. Elements are as wide as those of T.
template <class From>
struct LinesArguments {
  const From* from;
  int64_t step, count;
  const int64_t* row_offset;
  int64_t rows, row_length;
  int64_t pitch;  // of the lines, in elements, at least rows * row_length; what is between becomes 0 or is overwritten
};

// The taps of a weight as lines: to[row * pitch + channel * taps + tap] = from[row * row_stride + channel *
// channel_stride + offset[tap]]. Elements are as wide as those of T. Each `line_taps` taps are at the same distances.
template <class From>
struct TapsArguments {
  const From* from;
  int64_t row_stride, rows;
  int64_t channel_stride, channels;
  const int64_t* offset;
  int64_t taps, line_taps;
  int64_t pitch;
};

template <class T, class From>
struct PackKernels {
  void (*panel)(const PanelArguments<From>&, T* panel);
  // The same with positions as the terms: element [term - first] of a panel becomes a row of `vectors * lanes`
  // positions, which Pairs hold two by two.
  void (*rows)(const PanelArguments<From>&, T* rows);
  void (*transpose)(const TransposeArguments<From>&, T* to, int64_t to_step);
  // count elements, the last Pair of an odd number filled up by 0.
  void (*line)(const From* from, int64_t step, T* to, int64_t count);
  // Lines are written in ascending order; kLinesSlack beyond the last may be overwritten.
  void (*lines)(const LinesArguments<From>&, T* lines);
  // kLinesSlack beyond the end of a line may be overwritten.
  void (*taps)(const TapsArguments<From>&, T* lines);
  // to[row * pitch + i] = from[row + i * step] for i < count; elements are as wide as those of T.
  void (*turn)(const From* from, int64_t step, int64_t rows, int64_t count, T* to, int64_t pitch);
  // A row of a tile to a result.
  void (*store)(const typename SumOf<T>::type* from, From* to, int64_t step, int64_t count);
};

struct AllPackKernels {
  PackKernels<float, float> f32;
  PackKernels<double, double> f64;
  PackKernels<float, BFloat16> bf16_as_f32;
  PackKernels<float, Half> f16_as_f32;
  PackKernels<Pair, BFloat16> bf16;
};

}  // namespace unfoldconv::cpu
