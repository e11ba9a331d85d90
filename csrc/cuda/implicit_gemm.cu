// Which tiles a product gets, and the weights of a correlation in the order of the sums.
//
//   weights  planes (group, row, channel) with their taps, of any strides, one such layout for each variant
//   packed   [groups, rows, taps, channels rounded up to whole pieces]
//
//   packed[g, variant and row, tap, c] = weights[variant][g, row, c, tap], or 0 behind the last channel
//
// Every element of packed is written by one thread; neighbouring threads write neighbouring channels.
#include "implicit_gemm.cuh"
#include "implicit_gemm.h"
#include "weight_parameters.cuh"

namespace unfoldconv::cuda {
namespace {

struct PackedOrder {
  Divider<int64_t> padded_channels, rows;
  Unraveler<3, int64_t> kernel;
  int64_t taps, channels;
  Divider<int64_t> rows_of_variant;
  int64_t first_row, variant_offset[kMaxVariants], stride[3], axis_stride[3];
  int64_t count;
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    pack(const T* __restrict__ weights, T* __restrict__ packed, const __grid_constant__ PackedOrder order,
         const __grid_constant__ Divider<int64_t> taps) {
  for_each_item(order.count, [&](int64_t item) {
    int64_t rest = item;
    const int64_t channel = order.padded_channels.divide(rest), tap = taps.divide(rest);
    int64_t variant = order.rows.divide(rest) + order.first_row;
    const int64_t row = order.rows_of_variant.divide(variant);
    int64_t index[3];
    order.kernel(tap, index);
    int64_t offset =
        order.variant_offset[variant] + rest * order.stride[0] + row * order.stride[1] + channel * order.stride[2];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) offset += index[axis] * order.axis_stride[axis];
    packed[item] = channel < order.channels ? weights[offset] : T{};
  });
}

bool is_wide(const GemmCorrelation& problem) {
  const int64_t positions = problem.output_layout.count[0] * problem.geometry.position_numel();
  return problem.rows > NarrowTile::kN &&
         ceil_div(positions, WideTile::kM) * problem.groups * ceil_div(problem.rows, WideTile::kN) >= limits.busy;
}

}  // namespace

double gemm_index_limit() { return std::min(limits.index, double{1 << 30}); }

GemmTiles gemm_tiles(const GemmCorrelation& problem) {
  GemmTiles tiles{NarrowTile::kM, NarrowTile::kN, 0};
  if (problem.dtype == ScalarType::Double)
    tiles = {DoubleTile::kM, DoubleTile::kN, 0};
  else if (is_wide(problem))
    tiles = {WideTile::kM, WideTile::kN, 0};
  const int64_t positions = problem.output_layout.count[0] * problem.geometry.position_numel();
  tiles.blocks = ceil_div(positions, tiles.positions) * problem.groups * ceil_div(problem.rows, tiles.rows);
  return tiles;
}

void correlate(void* stream, const GemmCorrelation& problem) {
  switch (problem.dtype) {
    case ScalarType::Half: return correlate_half(stream, problem);
    case ScalarType::BFloat16: return correlate_bfloat16(stream, problem);
    case ScalarType::Float: return correlate_float(stream, problem);
    default: return correlate_double(stream, problem);
  }
}

GemmTiles weight_tiles(const GemmWeightSums& problem) {
  GemmTiles tiles{NarrowWeightTile::kM, NarrowWeightTile::kN, 0};
  if (problem.dtype == ScalarType::Double)
    tiles = {DoubleWeightTile::kM, DoubleWeightTile::kN, 0};
  else if (problem.wide)
    tiles = {WideWeightTile::kM, WideWeightTile::kN, 0};
  const auto& count = problem.image_layout.count;
  tiles.blocks = count[1] * ceil_div(count[2] * problem.geometry.tap_numel(), tiles.positions) *
                 ceil_div(problem.grad_layout.count[2], tiles.rows);
  return tiles;
}

void plan_weight_sums(GemmWeightSums& problem, int64_t most) {
  constexpr int64_t worthwhile = 4;  // chunks of a split
  const int64_t depth = problem.image_layout.count[0] * problem.geometry.position_numel();
  const int64_t chunks = ceil_div(depth, kRowBytes / element_size(problem.dtype));
  const int64_t useful = std::min(most, chunks / worthwhile);
  // Wide tiles read less, which only the speed of tensor cores makes matter. They must neither leave more rows empty
  // nor, with all the splits that there may be, a GPU idle.
  problem.wide = problem.pieces && (is_16bit_float(problem.dtype) || problem.tf32) &&
                 ceil_div(problem.grad_layout.count[2], NarrowWeightTile::kN) % 2 == 0;
  problem.wide = problem.wide && weight_tiles(problem).blocks * std::max<int64_t>(useful, 1) >= limits.busy;
  const int64_t wanted = ceil_div(2 * limits.busy, weight_tiles(problem).blocks);
  const int64_t splits = std::clamp<int64_t>(std::min(wanted, useful), 1, chunks);
  problem.splits = ceil_div(chunks, ceil_div(chunks, splits));  // none is empty
}

void sum_weights(void* stream, const GemmWeightSums& problem) {
  switch (problem.dtype) {
    case ScalarType::Half: return sum_weights_half(stream, problem);
    case ScalarType::BFloat16: return sum_weights_bfloat16(stream, problem);
    case ScalarType::Float: return sum_weights_float(stream, problem);
    default: return sum_weights_double(stream, problem);
  }
}

void pack_weights(void* stream, const WeightTaps& weights, int64_t element_bytes, int64_t groups, int64_t first_row,
                  int64_t rows, void* packed) {
  const auto& [count, stride, axis_stride] = weights.layout;
  PackedOrder order;
  const int64_t piece = kGemmPieceBytes / element_bytes;
  const int64_t padded = ceil_div(count[2], piece) * piece;
  order.padded_channels = Divider<int64_t>(padded);
  order.rows = Divider<int64_t>(rows);
  order.kernel = Unraveler<3, int64_t>(weights.kernel);
  order.taps = weights.kernel[0] * weights.kernel[1] * weights.kernel[2];
  order.channels = count[2];
  order.rows_of_variant = Divider<int64_t>(count[1]);
  order.first_row = first_row;
  std::copy(weights.variant_offset, weights.variant_offset + kMaxVariants, order.variant_offset);
  std::copy(stride, stride + 3, order.stride);
  std::copy(axis_stride, axis_stride + 3, order.axis_stride);
  order.count = groups * rows * order.taps * padded;
  const auto run = [&]<class T>(Type<T>) {
    launch(pack<T>, Grid::of_items(order.count), stream, static_cast<const T*>(weights.data), static_cast<T*>(packed),
           order, Divider<int64_t>(order.taps));
  };
  if (element_bytes == 2)
    run(Type<uint16_t>{});
  else if (element_bytes == 4)
    run(Type<uint32_t>{});
  else
    run(Type<uint64_t>{});
}

}  // namespace unfoldconv::cuda
