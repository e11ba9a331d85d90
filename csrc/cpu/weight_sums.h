// Weight gradients on the CPU without a matrix of columns, on the micro-kernel of tile_kernels.h.
//
//   grad_weight[g, m, c, t] = sum over images n and positions p of grad_output[n, g, m, p] * image[n, g, c, window(p,
//   t)]
//
// Here the terms of a sum are positions. Two engines, as for correlations (correlation.h): one gathers patches as rows
// [channel and tap, positions], which are broadcast, and has the rows of the output in the lanes; the other has
// channels in the lanes and reads the image where it lies, or packs it one tap at a time; it wants channels_last.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "../planes.h"

namespace unfoldconv::cpu {

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
};

// Returns false, having done nothing, where no engine takes the problem, by its dtype or its size.
template <int Rank>
bool weight_sums(const WeightSums<Rank>& problem);

// The engines.

bool weight_sums_of_rows(const WeightSums<3>& problem);

bool weight_sums_of_channels(const WeightSums<3>& problem);

}  // namespace unfoldconv::cpu
