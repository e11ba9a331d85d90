// What the kernel of correlations (implicit_gemm.cuh) is told. Its argument holds all of it, so a launch needs neither
// a copy to the device nor memory that outlives the call; and so do those of a captured graph.
#pragma once

#include "cuda/implicit_gemm/gemm_tile.cuh"
#include "cuda/implicit_gemm/implicit_gemm_launch.h"

namespace unfoldconv::cuda {

// What differs from phase to phase.
struct PhaseParameters {
  int64_t position_count;               // over all images
  Divider<int64_t> positions_of_image;  // splits a position counted over all images
  Unraveler<3, int> positions, kernel, variants;
  int padding_low[3];
  int pieces;  // of a row of patches

  int64_t weight_offset, weight_group_stride, weight_row_stride;
  int64_t output_offset;
  int first_row, rows;

  Divider<int> row_tiles, splits;        // of the splits of a tile each is a block's
  int chunks, segments, segment_chunks;  // of a sum
  int first_item;                        // of the phase, among the splits of all tiles

  struct Position {
    int64_t image;
    int index[3];
  };
  __device__ __forceinline__ Position locate(int64_t position) const {
    Position result;
    const int of_image = static_cast<int>(positions_of_image.divide(position));
    result.image = position;
    positions(of_image, result.index);
    return result;
  }
};

template <class T>
struct CorrelationParameters {
  const T *image, *weight, *bias;
  T* output;

  int size[3], stride[3], dilation[3];
  int64_t image_stride, image_group_stride;
  int channel_stride, axis_stride[3];  // of the image

  Divider<int> channel_pieces;  // of a tap
  int channels;

  int64_t output_image_stride, output_group_stride, output_row_stride, output_axis_stride[3], variant_stride[3];
  Divider<int> rows_of_variant;
  bool rows_innermost, output_pieces;

  Accumulator<T>* sums;  // put aside

  Divider<int> groups;
  int items, phase_count;
  PhaseParameters phases[kMaxPhases];

  CorrelationParameters(const GemmCorrelation& problem, int tile_positions, int tile_rows)
      : image(static_cast<const T*>(problem.image)),
        weight(static_cast<const T*>(problem.weight)),
        bias(static_cast<const T*>(problem.bias)),
        output(static_cast<T*>(problem.output)),
        image_stride(problem.image_layout.stride[0]),
        image_group_stride(problem.image_layout.stride[1]),
        channel_stride(problem.image_layout.stride[2]),
        channel_pieces(ceil_div(problem.image_layout.count[2], Piece<T>::kCount)),
        channels(problem.image_layout.count[2]),
        output_image_stride(problem.output_layout.stride[0]),
        output_group_stride(problem.output_layout.stride[1]),
        output_row_stride(problem.output_layout.stride[2]),
        rows_of_variant(problem.output_layout.count[2]),
        rows_innermost(problem.rows_innermost),
        output_pieces(problem.output_pieces),
        sums(static_cast<Accumulator<T>*>(problem.sums)),
        groups(problem.groups),
        items(0),
        phase_count(problem.phase_count) {
    for (int axis = 0; axis < 3; ++axis) {
      size[axis] = problem.size[axis];
      stride[axis] = problem.stride[axis];
      dilation[axis] = problem.dilation[axis];
      axis_stride[axis] = problem.image_layout.axis_stride[axis];
      output_axis_stride[axis] = problem.output_layout.axis_stride[axis];
      variant_stride[axis] = problem.variant_stride[axis];
    }
    for (int i = 0; i < phase_count; ++i) {
      const GemmPhase& from = problem.phases[i];
      PhaseParameters& phase = phases[i];
      phase.position_count = problem.output_layout.count[0] * from.position_numel();
      phase.positions_of_image = Divider<int64_t>(from.position_numel());
      phase.positions = Unraveler<3, int>(from.positions);
      phase.kernel = Unraveler<3, int>(from.kernel);
      phase.variants = Unraveler<3, int>(from.run);
      std::copy(from.padding_low, from.padding_low + 3, phase.padding_low);
      phase.pieces = from.tap_numel() * ceil_div(problem.image_layout.count[2], Piece<T>::kCount);
      phase.weight_offset = from.weight.offset;
      phase.weight_group_stride = from.weight.group_stride;
      phase.weight_row_stride = from.weight.row_stride;
      phase.output_offset = from.output_offset;
      phase.first_row = from.first_row;
      phase.rows = from.rows;
      const int64_t row_tiles = ceil_div(from.rows, tile_rows);
      phase.row_tiles = Divider<int>(row_tiles);
      phase.segments = from.segments;
      phase.chunks = ceil_div(phase.pieces, kPieces);
      phase.segment_chunks = ceil_div(phase.chunks, from.segments);
      const int64_t splits = problem.split ? from.segments : 1;
      phase.splits = Divider<int>(splits);
      phase.first_item = items;
      items += ceil_div(phase.position_count, tile_positions) * problem.groups * row_tiles * splits;
    }
  }

  struct Tile {
    const PhaseParameters& phase;
    int first_row, group;
    int64_t first_position;
    int split;
  };
  template <class Shape>
  __device__ __forceinline__ Tile locate(int item) const {
    int of_item = 0;
    while (of_item + 1 < phase_count && item >= phases[of_item + 1].first_item) ++of_item;
    const PhaseParameters& phase = phases[of_item];
    item -= phase.first_item;
    const int split = phase.splits.divide(item), row_tile = phase.row_tiles.divide(item), group = groups.divide(item);
    return {phase, row_tile * Shape::kN, group, int64_t{item} * Shape::kM, split};
  }
};

constexpr size_t kParameterBytes = 4096;  // that CUDA grants every kernel
static_assert(sizeof(CorrelationParameters<double>) <= kParameterBytes);

}  // namespace unfoldconv::cuda
