// Convolutions on CUDA as implicit matrix products: the kernels as host code calls them. csrc/implicit_gemm.cpp, their
// caller, decides what they are given; they know nothing of torch.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "../geometry.h"

namespace unfoldconv::cuda {

using torch::headeronly::ScalarType;

constexpr int kMaxVariants = 64;     // outputs that share their columns
constexpr int kGemmPieceBytes = 16;  // terms are counted in pieces of so many bytes

// The terms of a sum are ordered by tap, then by channel, and the channels of a tap fill whole pieces: the last one may
// end in terms that do not count. A matrix of weights is rows of such terms.
struct WeightMatrix {
  const void* data;
  int64_t group_stride, row_stride;  // elements; multiples of a piece
};

// Part of a correlation (csrc/correlation.h): all images, some groups, and of each some of its rows, those of one
// variant after those of another.
struct GemmCorrelation {
  ScalarType dtype;
  bool tf32;  // whether Float may be multiplied as tf32

  const void* image;            // where the first group begins
  PlaneLayout<3> image_layout;  // (batch, group, channel)
  bool image_pieces;            // whether the channels of a tap lie in memory as pieces
  Geometry<3> geometry;

  WeightMatrix weight;  // of the groups and rows of this part

  void* output;                  // of the first variant, where the first group begins
  PlaneLayout<3> output_layout;  // (batch, group, row of a variant)
  int64_t variant_offset[kMaxVariants];
  bool rows_adjoin;    // whether neighbouring rows are nearer in memory than neighbouring positions
  bool output_pieces;  // whether what adjoins comes in whole pieces

  const void* bias;  // a number for each group and row of a variant, from the first group on; or null

  int64_t groups, first_row, rows;  // of this part
};

// How many elements the index arithmetic of the kernels can tell apart.
double gemm_index_limit();

// Output positions and rows of a block, and blocks, for explain.
struct GemmTiles {
  int positions, rows;
  int64_t blocks;
};
GemmTiles gemm_tiles(const GemmCorrelation& problem);

// One launch. Every dtype is a file of its own.
void correlate(void* stream, const GemmCorrelation& problem);
void correlate_half(void* stream, const GemmCorrelation& problem);
void correlate_bfloat16(void* stream, const GemmCorrelation& problem);
void correlate_float(void* stream, const GemmCorrelation& problem);
void correlate_double(void* stream, const GemmCorrelation& problem);

// The gradient of a weight (csrc/weight_sums.h). Positions of all images are cut into `splits` ranges, whose sums go to
// `partial` [splits, grad_weight's numel], in float or double, and from there in order to grad_weight.
enum class Gather { rows, positions, pieces };  // along what an operand is read; pieces are of positions

struct GemmWeightSums {
  ScalarType dtype;
  bool tf32;

  const void* image;
  PlaneLayout<3> image_layout;  // (batch, group, channel)
  const void* grad_output;
  PlaneLayout<3> grad_layout;  // (batch, group, row)
  Geometry<3> geometry;
  bool pieces;  // whether the channels of a tap and the rows of a position lie in memory as pieces; or else:
  Gather image_gather, grad_gather;

  void* grad_weight;
  void* partial;  // may be null with one split
  bool wide;      // whether tiles have 128 rows
  int64_t splits;
};

// Sets `wide` and `splits` to what keeps a large GPU busy, if `most` splits fit the workspace.
void plan_weight_sums(GemmWeightSums& problem, int64_t most);

GemmTiles weight_tiles(const GemmWeightSums& problem);  // terms instead of positions

void sum_weights(void* stream, const GemmWeightSums& problem);
void sum_weights_half(void* stream, const GemmWeightSums& problem);
void sum_weights_bfloat16(void* stream, const GemmWeightSums& problem);
void sum_weights_float(void* stream, const GemmWeightSums& problem);
void sum_weights_double(void* stream, const GemmWeightSums& problem);

// Weights as a tensor holds them: planes (group, row, channel) with their taps.
struct WeightTaps {
  const void* data;  // of the first variant and the first group
  PlaneLayout<3> layout;
  int64_t variant_offset[kMaxVariants];
  int64_t kernel[3];
};

// Writes the WeightMatrix of `groups` groups and of each the rows first_row, first_row + 1, ...
void pack_weights(void* stream, const WeightTaps& weights, int64_t element_bytes, int64_t groups, int64_t first_row,
                  int64_t rows, void* packed);

}  // namespace unfoldconv::cuda
