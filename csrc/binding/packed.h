// The numbers per axis of an op, packed into one integer: of a small call from Python, most of the time goes into the
// conversion of lists. So the convolutions have private twins that take packed numbers; unfoldconv/_fast_path.py packs
// them, and says when a twin stands in for its op.
#pragma once

#include <cstdint>

#include "binding/checks.h"

namespace unfoldconv {

constexpr int kPackedBits = 60;  // shared evenly by the numbers, the first the lowest

// `Count` times one number per axis.
template <int Count>
class Unpacked {
 public:
  Unpacked(int64_t packed, int64_t rank) : rank_(rank) {
    const int64_t bits = kPackedBits / (Count * rank), mask = (int64_t{1} << bits) - 1;
    for (int64_t i = 0; i < Count * rank; ++i, packed >>= bits) numbers_[i] = packed & mask;
  }
  Numbers operator[](int64_t index) const { return {numbers_ + index * rank_, static_cast<size_t>(rank_)}; }

 private:
  int64_t rank_, numbers_[Count * 3];
};

// A window without its kernel: stride, padding_low, padding_high, dilation.
using UnpackedWindow = Unpacked<4>;

}  // namespace unfoldconv
