// The input gradient as plain correlations, without multiplying a zero.
//
// Image element i of the input gradient sums weight[tap] * grad_output[o] over the taps with i = o * stride -
// padding_low + tap * dilation. Elements whose (i + padding_low) has the same residue modulo the stride see the same
// taps, a step of stride / gcd(stride, dilation) apart, and o moves by one where i moves by the stride: each residue (a
// "phase") is a stride-1 correlation of grad_output with some of the taps in reverse order. Neighbouring residues whose
// taps reach grad_output at the same offsets (all of them where stride = kernel) form one phase with a `run` of more
// than one: they share their columns and only their weights differ. (The sub-pixel view of a transposed convolution:
// Shi et al. 2016, arXiv:1609.07009.)
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "problem/geometry.h"

namespace unfoldconv {

struct AxisPhase {
  int64_t first;        // first image index; the phase holds first + f + stride * j for f < run, j < count
  int64_t run;          // residues that share their columns
  int64_t count;        // image elements per residue
  int64_t taps;         // taps that reach the phase, the same number for each residue
  int64_t tap;          // the largest of those taps, for f = 0; residue f has tap + f
  int64_t tap_step;     // from there the taps go down by this
  int64_t padding_low;  // of the correlation over grad_output
  int64_t dilation;     // of the correlation over grad_output
};

// The phases of one axis, in order of their first image index, with runs of at most `longest_run`; together they hold
// every image element once.
inline std::vector<AxisPhase> axis_phases(int64_t image, int64_t kernel, int64_t stride, int64_t dilation,
                                          int64_t padding_low, int64_t longest_run) {
  const int64_t common = std::gcd(stride, dilation);
  const int64_t tap_step = stride / common;
  std::vector<AxisPhase> phases;
  for (int64_t first = 0; first < std::min(stride, image); ++first) {
    const int64_t residue = (first + padding_low) % stride;
    const int64_t lead = (first + padding_low) / stride;
    AxisPhase phase{first, 1, (image - first - 1) / stride + 1, 0, 0, tap_step, 0, dilation / common};
    int64_t lowest = 0;
    while (lowest < std::min(kernel, tap_step) && lowest * dilation % stride != residue) ++lowest;
    if (lowest < std::min(kernel, tap_step)) {
      phase.taps = (kernel - 1 - lowest) / tap_step + 1;
      phase.tap = lowest + (phase.taps - 1) * tap_step;
      phase.padding_low = (phase.taps - 1) * phase.dilation - (lead - (lowest * dilation - residue) / stride);
    }
    if (!phases.empty()) {
      AxisPhase& previous = phases.back();
      if (previous.run < longest_run && previous.count == phase.count && previous.taps == phase.taps &&
          previous.padding_low == phase.padding_low && (phase.taps == 0 || previous.tap + previous.run == phase.tap)) {
        ++previous.run;
        continue;
      }
    }
    phases.push_back(phase);
  }
  return phases;
}

}  // namespace unfoldconv
