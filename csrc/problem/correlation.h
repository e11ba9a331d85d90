// What a convolution, and each phase of its input gradient, comes down to: a stride-s correlation.
//
//   output[n, g, m, p] = bias[g, m] + sum over channels c and taps t of weight[g, m, c, t] * image[n, g, c, window(p,
//   t)]
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "problem/planes.h"

namespace unfoldconv {

template <int Rank>
struct Correlation {
  Planes<Rank> image;  // (batch, group, channel)
  Geometry<Rank> geometry;
  // Outputs that share their columns: views (batch, group, row) of one layout, and the weights (group, row, channel) of
  // each, also of one layout.
  std::vector<Planes<Rank>> weights, outputs;
  const char* bias;         // one number per group and row, or null
  Tensor like;              // says where memory comes from
  int64_t weight_copy = 0;  // bytes of a copy of the weight that this and other problems read

  int64_t batch() const { return outputs[0].layout.count[0]; }
  int64_t groups() const { return outputs[0].layout.count[1]; }
  int64_t rows() const { return outputs[0].layout.count[2]; }  // of one output and group
  int64_t channels() const { return image.layout.count[2]; }
  int64_t variants() const { return static_cast<int64_t>(outputs.size()); }
};

// The same problem with axes of size 1 in front.
template <int To, int From>
Correlation<To> with_leading_axes(const Correlation<From>& problem) {
  Correlation<To> result{with_leading_axes<To>(problem.image),
                         with_leading_axes<To>(problem.geometry),
                         {},
                         {},
                         problem.bias,
                         problem.like,
                         problem.weight_copy};
  for (const Planes<From>& weight : problem.weights) result.weights.push_back(with_leading_axes<To>(weight));
  for (const Planes<From>& output : problem.outputs) result.outputs.push_back(with_leading_axes<To>(output));
  return result;
}

// What an input gradient is made of. `bias`: one number per channel, or null.
template <int Rank>
struct InputGrad {
  Planes<Rank> grad_output, grad_input;  // (batch, group, channel of the group)
  Planes<Rank> weight;                   // (group, input channel, output channel)
  Geometry<Rank> geometry;
  const char* bias;
  Tensor like;  // says where memory comes from
};

template <int To, int From>
InputGrad<To> with_leading_axes(const InputGrad<From>& problem) {
  return {with_leading_axes<To>(problem.grad_output),
          with_leading_axes<To>(problem.grad_input),
          with_leading_axes<To>(problem.weight),
          with_leading_axes<To>(problem.geometry),
          problem.bias,
          problem.like};
}

}  // namespace unfoldconv
