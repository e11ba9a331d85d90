// Weights whose neighbouring channels lie far apart in memory while, for each of them, all rows and taps are a line: in
// an input gradient they do. They are multiplied in rows of neighbouring channels, to which they are transposed: some
// rows at a time (correlate_transposed.cpp), or as a whole (transposed_weight.h).
#pragma once

#include <algorithm>
#include <utility>

#include "cpu/correlate/weight_rows.h"
#include "cpu/shared/terms.h"
#include "cpu/shared/windows.h"

namespace unfoldconv::cpu {

// A run for each tap pays off where it is long, or where enough of them are left out because they read only padding.
constexpr int64_t kLongRun = 96;  // terms
constexpr double kMuchPadding = 0.1;

// How much of what taps read along all axes but the last is padding. `sums` is how many elements of a result sum what
// the taps of an axis read.
template <int Rank>
double padding_share(const Geometry<Rank>& geometry, const double (&sums)[Rank]) {
  double inside = 1;
  for (int axis = 0; axis < Rank - 1; ++axis) {
    const WindowAxis window(geometry, axis);
    int64_t read = 0;  // positions and taps that read the image
    for (int64_t tap = 0; tap < window.kernel; ++tap) {
      const RunPart part = window.inside(tap * window.dilation - window.padding_low, window.positions);
      read += part.end - part.begin;
    }
    inside *= static_cast<double>(read) / (sums[axis] * window.kernel);
  }
  return 1 - inside;
}

// Whether the rows and taps of one channel are neighbours in memory, in whatever order.
template <int Rank>
bool rows_and_taps_are_dense(const PlaneLayout<Rank>& layout, const int64_t (&kernel)[Rank]) {
  std::pair<int64_t, int64_t> axes[Rank + 1];  // stride, size
  for (int axis = 0; axis < Rank; ++axis) axes[axis] = {std::abs(layout.axis_stride[axis]), kernel[axis]};
  axes[Rank] = {layout.stride[1], layout.count[1]};
  std::sort(axes, axes + Rank + 1);
  int64_t numel = 1;
  for (const auto& [stride, size] : axes) {
    if (size != 1 && stride != numel) return false;
    numel *= size;
  }
  return true;
}

// Where an image has more positions than that, to transpose a weight as a whole takes less than to transpose it for
// every few panels.
constexpr int64_t kFewPositions = 1024;

// Whether it is transposed a few rows at a time, for `positions` of an image. Not by the batch: sums are cut elsewhere
// then.
template <int Rank>
bool transposed_by_rows(const PlaneLayout<Rank>& layout, const int64_t (&kernel)[Rank], int64_t positions) {
  return positions <= kFewPositions && rows_and_taps_are_dense(layout, kernel) &&
         (layout.count[1] == 1 || layout.stride[1] == Geometry<Rank>::product(kernel));
}

// Whether runs of the transposed channels are worth it, with `padding` as the share of it.
template <class Terms>
bool worth_transposing(int64_t channels, double padding) {
  return channels % Terms::kHalves == 0 && Terms::count(channels) >= kRunTerms &&
         (Terms::count(channels) >= kLongRun || padding >= kMuchPadding);
}

}  // namespace unfoldconv::cpu
