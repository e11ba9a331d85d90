// One axis of a sliding window by residues modulo the stride.
//
// A tap reads every stride-th element of the image, so elements that lie `stride` apart, set side by side, are a run in
// which one tap at neighbouring positions means neighbouring elements, whatever the stride and the dilation. With
//
//   index + padding_low = position * stride + tap * dilation = quotient * stride + residue
//
// a run is the elements of one residue by their quotients, and a tap finds its first position tap * dilation / stride
// into it.
#pragma once

#include <algorithm>
#include <numeric>
#include <utility>

#include "problem/geometry.h"
#include "runtime/rows.h"

namespace unfoldconv::cpu {

// The elements of a run that lie in the image: [begin, end) of it, the first of them at `index`.
struct RunPart {
  int64_t begin, end, index;
};

// The taps that read one residue: first, first + step, ... of the kernel. Each finds its first position `ahead`
// elements further into the run than the one before it.
struct TapsOfRun {
  int64_t first, step, offset, ahead;
};

class WindowAxis {
 public:
  template <int Rank>
  WindowAxis(const Geometry<Rank>& geometry, int axis)
      : image(geometry.image[axis]),
        positions(geometry.positions[axis]),
        kernel(geometry.kernel[axis]),
        stride(geometry.stride[axis]),
        dilation(geometry.dilation[axis]),
        padding_low(geometry.padding_low[axis]),
        spacing_(std::gcd(stride, dilation)),
        period_(stride / spacing_),
        inverse_(inverse(dilation / spacing_ % period_, period_)) {}

  const int64_t image, positions, kernel, stride, dilation, padding_low;

  // How many residues the taps have. If all that the dilation allows, they are numbered by size, else as the taps are.
  int64_t residues() const { return std::min(kernel, period_); }
  int64_t residue(int64_t i) const { return kernel < period_ ? i * dilation % stride : i * spacing_; }
  int64_t run_of(int64_t tap) const { return kernel < period_ ? tap : tap * dilation % stride / spacing_; }
  int64_t offset_of(int64_t tap) const { return tap * dilation / stride; }

  TapsOfRun taps_of(int64_t run) const {
    if (kernel < period_ || inverse_ == 1) return {run, period_, offset_of(run), dilation / spacing_};
    const auto first = static_cast<int64_t>(static_cast<unsigned __int128>(run) * inverse_ % period_);
    return {first, period_, offset_of(first), dilation / spacing_};
  }

  // The elements first, first + stride, ... (`count` of them) as far as they lie in the image.
  RunPart inside(int64_t first, int64_t count) const {
    const int64_t begin = std::clamp<int64_t>(ceil_div(std::max<int64_t>(0, -first), stride), 0, count);
    const int64_t end = std::clamp<int64_t>(ceil_div(std::max<int64_t>(0, image - first), stride), begin, count);
    return {begin, end, first + begin * stride};
  }

  // The same of several runs, the first elements of which are `step` apart: f(run, runs, part) for parts that lie alike
  // in `runs` runs from `run` on. Nearly all lies in one such part.
  template <class F>
  void for_each_inside(int64_t first, int64_t step, int64_t runs, int64_t count, const F& f) const {
    RunPart common = inside(first, count);
    common.end = std::max(common.begin, inside(first + (runs - 1) * step, count).end);
    if (common.begin < common.end) f(int64_t{0}, runs, common);
    for (int64_t run = 0; run < runs; ++run) {
      const RunPart own = inside(first + run * step, count);
      const auto piece = [&](int64_t begin, int64_t end) {
        if (begin < end) f(run, int64_t{1}, RunPart{begin, end, first + run * step + begin * stride});
      };
      piece(own.begin, std::min(own.end, common.begin));
      piece(std::max(own.begin, common.end), own.end);
    }
  }

 private:
  // x with x * number = 1 modulo `modulus`, to which `number` is prime.
  static int64_t inverse(int64_t number, int64_t modulus) {
    int64_t a = modulus, b = number, x = 0, y = 1;
    while (b > 1) {
      const int64_t quotient = a / b;
      a = std::exchange(b, a - quotient * b);
      x = std::exchange(y, x - quotient * y);
    }
    return modulus == 1 ? 0 : (y + modulus) % modulus;
  }

  int64_t spacing_, period_, inverse_;
};

}  // namespace unfoldconv::cpu
