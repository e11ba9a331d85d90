// The inner loops of im2col and col2im, for one instruction set.
#pragma once

#include <cstdint>

#include "../scalar.h"

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

// to[i] += from[i], in the accumulator's type; the last strides are 1. It may read `from` up to `from_end`, and
// rewrites, unchanged, as much as a vector of elements behind each row of `to`. bool is added by "or".
template <class T>
using Add = void (*)(const T* from, const T* from_end, Accumulator<T>* to, const Block& block);

struct PatchKernels {
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
};

// Elements behind the end of an accumulator that Add may rewrite.
constexpr int64_t kAddSlack = 64;

}  // namespace unfoldconv::cpu
