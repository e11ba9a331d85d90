// The inner loops of im2col and col2im, for one instruction set.
#pragma once

#include <cstdint>

#include "problem/scalar.h"

namespace unfoldconv::cpu {

// An array of elements along four axes (channel, then space), to be moved or added element by element. Strides count
// elements and may be any number.
struct Block {
  int64_t count[4];
  int64_t from_stride[4];
  int64_t to_stride[4];
};

// to[i] = from[i], converted, for every index of the block. Only the elements that it names are read or written.
template <class From, class To>
using Move = void (*)(const From* from, To* to, const Block& block);

// Rows of bytes, all the same length, in a grid of rows.
struct Rows {
  int64_t bytes, count[2], from_pitch[2], to_pitch[2];
};

// For each of the taps, copies the rows from from + offset[tap] to to + tap * to_step. Counts bytes throughout.
using CopyRows = void (*)(const char* from, const int64_t* offset, int64_t taps, char* to, int64_t to_step,
                          const Rows& rows);

// to[i] += from[i], in the accumulator's type; the last strides are 1. It may read `from` up to `from_end`, and
// rewrites, unchanged, as much as a vector of elements behind each row of `to`. bool is added by "or".
template <class T>
using Add = void (*)(const T* from, const T* from_end, Accumulator<T>* to, const Block& block);

// What a tap adds to a narrow tile: at its row r and element x, for the rows and elements in the given ranges, what
// lies at `from` + r * pitch + x of the columns.
struct Term {
  int64_t from;
  int32_t first_row, end_row, first, end;
};

// to[r * to_pitch + x] += the sum of the terms in order, for `rows` rows of at most a vector of x, of which all is
// rewritten; with `start` it is = and not +=. It reads whole vectors of columns, whatever the ranges.
template <class T>
using Sum = void (*)(const T* columns, const Term* terms, int64_t count, int64_t pitch, Accumulator<T>* to,
                     int64_t to_pitch, int64_t rows, bool start);
constexpr int64_t kMostTerms = 32;

struct PatchKernels {
  int64_t vector_bytes;
  CopyRows copy_rows;
  Move<uint8_t, uint8_t> move_1;
  Move<uint16_t, uint16_t> move_2;
  Move<uint32_t, uint32_t> move_4;
  Move<uint64_t, uint64_t> move_8;
  Move<Bytes16, Bytes16> move_16;
  Move<Half, float> widen_half;
  Move<BFloat16, float> widen_bfloat16;
  Move<float, Half> narrow_half;
  Move<float, BFloat16> narrow_bfloat16;
  Add<Bool> add_bool;
  Add<uint8_t> add_1;
  Add<uint16_t> add_2;
  Add<uint32_t> add_4;
  Add<uint64_t> add_8;
  Add<Half> add_half;
  Add<BFloat16> add_bfloat16;
  Add<float> add_float;
  Add<double> add_double;
  Sum<Bool> sum_bool;
  Sum<uint8_t> sum_1;
  Sum<uint16_t> sum_2;
  Sum<uint32_t> sum_4;
  Sum<uint64_t> sum_8;
  Sum<Half> sum_half;
  Sum<BFloat16> sum_bfloat16;
  Sum<float> sum_float;
  Sum<double> sum_double;
};

// Elements behind the end of an accumulator that Add may rewrite.
constexpr int64_t kAddSlack = 64;

}  // namespace unfoldconv::cpu
