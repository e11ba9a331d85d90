// What a convolution, and each phase of its input gradient, comes down to: a stride-s correlation.
//
//   output[n, g, m, p] = bias[g, m] + sum over channels c and taps t of weight[g, m, c, t] * image[n, g, c, window(p,
//   t)]
#pragma once

#include "problem/planes.h"

namespace unfoldconv {

template <int Rank>
struct Correlation {
  int rank;    // of the call; axes before its own are of size 1
  bool phase;  // of an input gradient, not a convolution
  Geometry<Rank> geometry;
  Planes<Rank> image;   // (batch, group, channel)
  Planes<Rank> weight;  // (group, row, channel), of the first variant
  Planes<Rank> output;  // (batch, group, row), of the first variant
  // Variants are outputs that share their columns, each with its own weight: `run` of them along each axis, whose
  // weights and outputs lie so many elements apart.
  int64_t run[Rank], weight_step[Rank], output_step[Rank];
  const char* bias;         // one number per group and row, or null
  int64_t weight_copy = 0;  // bytes of a copy of the weight that this and other problems read

  int64_t batch() const { return output.layout.count[0]; }
  int64_t groups() const { return output.layout.count[1]; }
  int64_t rows() const { return output.layout.count[2]; }  // of one variant and group
  int64_t channels() const { return image.layout.count[2]; }
  int64_t variants() const { return Geometry<Rank>::product(run); }
  // Multiplications and additions of all outputs, those with padding included.
  double flops() const {
    return 2. * batch() * groups() * variants() * rows() * channels() * geometry.position_numel() *
           geometry.tap_numel();
  }

  Planes<Rank> weight_of(int64_t variant) const { return weight.shifted(offset(variant, weight_step)); }
  Planes<Rank> output_of(int64_t variant) const { return output.shifted(offset(variant, output_step)); }

 private:
  int64_t offset(int64_t variant, const int64_t (&step)[Rank]) const {
    if (variant == 0) return 0;  // of most problems the only one: it costs no division
    int64_t index[Rank], result = 0;
    unravel<Rank>(variant, run, index);
    for (int axis = 0; axis < Rank; ++axis) result += index[axis] * step[axis];
    return result;
  }
};

// The same problem without axes of size 1 in front.
template <int To, int From>
Correlation<To> trailing_axes(const Correlation<From>& problem) {
  Correlation<To> result{problem.rank,
                         problem.phase,
                         trailing_axes<To>(problem.geometry),
                         trailing_axes<To>(problem.image),
                         trailing_axes<To>(problem.weight),
                         trailing_axes<To>(problem.output),
                         {},
                         {},
                         {},
                         problem.bias,
                         problem.weight_copy};
  for (int axis = 0; axis < To; ++axis) {
    const int from = axis + From - To;
    result.run[axis] = problem.run[from];
    result.weight_step[axis] = problem.weight_step[from];
    result.output_step[axis] = problem.output_step[from];
  }
  return result;
}

// What an input gradient is made of. `bias`: one number per channel, or null.
template <int Rank>
struct InputGrad {
  int rank;  // as above
  Geometry<Rank> geometry;
  Planes<Rank> grad_output, grad_input;  // (batch, group, channel of the group)
  Planes<Rank> weight;                   // (group, input channel, output channel)
  const char* bias;
};

}  // namespace unfoldconv
