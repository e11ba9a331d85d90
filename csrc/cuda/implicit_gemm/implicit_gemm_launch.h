// Convolutions on CUDA as implicit matrix products: the kernels as host code calls them.
// csrc/cuda/implicit_gemm/implicit_gemm_engine.cpp, their caller, decides what they are given; they know nothing of
// torch.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "problem/geometry.h"

namespace unfoldconv::cuda {

using torch::headeronly::ScalarType;

constexpr int kMaxPhases = 12;       // of a launch; the parameters of a kernel must fit 4 KiB
constexpr int kGemmPieceBytes = 16;  // terms are counted in pieces of so many bytes

// The terms of a sum are ordered by tap, then by channel, and the channels of a tap fill whole pieces: the last one may
// end in terms that do not count. A matrix of weights is rows of such terms.
struct WeightMatrix {
  int64_t offset;                    // of its first row in the memory that the matrices of all phases are in
  int64_t group_stride, row_stride;  // elements, like the offset; multiples of a piece
};

// A phase of a correlation: its own window over the image that all phases share, and its own part of the output. Of
// each position it has several outputs, its variants, run[axis] of them along every axis, which share the patch: the
// rows of a variant come after those of the one before. A phase that no tap reaches is all bias.
struct GemmPhase {
  int64_t positions[3], kernel[3], padding_low[3], run[3];
  int64_t output_offset;  // of the first position and variant
  int64_t tap_offset;     // of the first tap of the first variant (WeightTaps)
  WeightMatrix weight;
  int64_t first_row, rows;  // those that a launch computes
  int64_t segments;         // of its sums (cut_sums)

  int64_t variants() const { return Geometry<3>::product(run); }
  int64_t position_numel() const { return Geometry<3>::product(positions); }
  int64_t tap_numel() const { return Geometry<3>::product(kernel); }
};

// Correlations over one image (csrc/problem/correlation.h): all of its planes, some groups, and of those some phases.
struct GemmCorrelation {
  ScalarType dtype;
  bool tf32;  // whether Float may be multiplied as tf32

  const void* image;            // where the first group begins
  PlaneLayout<3> image_layout;  // (batch, group, channel)
  bool image_pieces;            // whether the channels of a tap lie in memory as pieces
  int64_t size[3], stride[3], dilation[3];

  const void* weight;  // the matrices of the phases, those of the first group first

  void* output;                  // where the first group begins
  PlaneLayout<3> output_layout;  // (batch, group, row of a variant), with the strides of positions
  int64_t variant_stride[3];
  bool rows_innermost;  // whether neighbouring rows are nearer in memory than neighbouring positions
  bool output_pieces;   // whether what is innermost comes in whole pieces

  const void* bias;  // a number for each group and row of a variant, from the first group on; or null

  int64_t groups;
  int phase_count;
  GemmPhase phases[kMaxPhases];

  void* sums;         // memory of a GemmPlan
  int64_t sum_bytes;  // of it
  bool split;         // whether every segment of a sum is a block's
};

// How many elements the index arithmetic of the kernels can tell apart.
double gemm_index_limit();

// Cuts long sums into segments: the sum of a segment begins at zero, and those of all segments are added in order. How
// many there are follows from a single image alone, so no bit of a result depends on the batch, or on whether the
// segments are summed by blocks of their own, which keep a GPU busy that has little else to do, or one after the other
// by one. Sums of problems that fill a GPU with a single image stay whole.
constexpr int64_t kMostSegments = 8;
void cut_sums(ScalarType dtype, int64_t channels, int64_t groups, std::vector<GemmPhase>& phases);

// With less room for partial sums than this, no sum may be cut: blocks that sum the segments one after the other each
// put aside what they have so far, and fewer of them do not fill a GPU.
constexpr int64_t kGemmSumBytes = 8 << 20;

// How the segments are summed, if `room` bytes may be taken for partial sums; the blocks are those of the first launch.
struct GemmPlan {
  bool split;
  int64_t sum_bytes, blocks;
};
GemmPlan gemm_plan(const GemmCorrelation& problem, int64_t room);

// Output positions and rows of a block, either at least kLeastTile, and blocks, for explain.
constexpr int kLeastTile = 64;
struct GemmTiles {
  int positions, rows;
  int64_t blocks;
};
GemmTiles gemm_tiles(const GemmCorrelation& problem);

// One launch, or if the problem is split a second one, which adds the segments. Every dtype is a file of its own.
void correlate(void* stream, const GemmCorrelation& problem);
void correlate_half(void* stream, const GemmCorrelation& problem);
void correlate_bfloat16(void* stream, const GemmCorrelation& problem);
void correlate_float(void* stream, const GemmCorrelation& problem);
void correlate_double(void* stream, const GemmCorrelation& problem);

// The gradient of a weight (csrc/problem/weight_grad.h). Positions of all images are cut into `splits` ranges, whose
// sums go to `partial` [splits, grad_weight's numel], in float or double, and from there in order to grad_weight.
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
  const void* data;  // where the first group begins
  PlaneLayout<3> layout;
  int64_t variant_stride[3];
};

// Writes the matrices of weights of a correlation's groups and phases: one launch.
void pack_weights(void* stream, const WeightTaps& weights, const GemmCorrelation& problem, void* packed);

}  // namespace unfoldconv::cuda
