// What the gradient of a weight comes down to.
//
//   grad_weight[g, m, c, t] = sum over images n and positions p of grad_output[n, g, m, p] * image[n, g, c, window(p,
//   t)]
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "problem/planes.h"

namespace unfoldconv {

using torch::stable::Tensor;

template <int Rank>
struct WeightSums {
  Planes<Rank> grad_output;  // (batch, group, row)
  Planes<Rank> image;        // (batch, group, channel)
  Geometry<Rank> geometry;
  Tensor grad_weight;  // contiguous

  int64_t batch() const { return image.layout.count[0]; }
  int64_t groups() const { return image.layout.count[1]; }
  int64_t channels() const { return image.layout.count[2]; }
  int64_t rows() const { return grad_output.layout.count[2]; }
  int64_t numel() const { return groups() * rows() * channels() * geometry.tap_numel(); }
};

// The same problem with axes of size 1 in front.
template <int To, int From>
WeightSums<To> with_leading_axes(const WeightSums<From>& problem) {
  return {with_leading_axes<To>(problem.grad_output), with_leading_axes<To>(problem.image),
          with_leading_axes<To>(problem.geometry), problem.grad_weight};
}

}  // namespace unfoldconv
