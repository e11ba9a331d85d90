// What the gradient of a weight comes down to.
//
//   grad_weight[g, m, c, t] = sum over images n and positions p of grad_output[n, g, m, p] * image[n, g, c, window(p,
//   t)]
#pragma once

#include "problem/planes.h"

namespace unfoldconv {

template <int Rank>
struct WeightGrad {
  int rank;  // of the call; axes before its own are of size 1
  Geometry<Rank> geometry;
  Planes<Rank> grad_output;  // (batch, group, row)
  Planes<Rank> image;        // (batch, group, channel)
  char* grad_weight;         // [group, row, channel, tap], contiguous

  int64_t batch() const { return image.layout.count[0]; }
  int64_t groups() const { return image.layout.count[1]; }
  int64_t channels() const { return image.layout.count[2]; }
  int64_t rows() const { return grad_output.layout.count[2]; }
  int64_t numel() const { return groups() * rows() * channels() * geometry.tap_numel(); }
};

// The same problem without axes of size 1 in front.
template <int To, int From>
WeightGrad<To> trailing_axes(const WeightGrad<From>& problem) {
  return {problem.rank, trailing_axes<To>(problem.geometry), trailing_axes<To>(problem.grad_output),
          trailing_axes<To>(problem.image), problem.grad_weight};
}

}  // namespace unfoldconv
