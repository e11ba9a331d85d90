// Which tiles a product gets, and the weights of a correlation in the order of the sums.
//
//   weights  planes (group, row, channel) with their taps, of any strides, one such layout for each phase and variant
//   packed   for each phase [groups, rows, taps, channels rounded up to whole pieces]
//
//   packed[phase][g, variant and row, tap, c] = weights[phase, variant][g, row, c, tap], or 0 behind the last channel
//
// Every element of packed is written by one thread; neighbouring threads write neighbouring channels.
#include "cuda/implicit_gemm/implicit_gemm.cuh"
#include "cuda/implicit_gemm/implicit_gemm_launch.h"
#include "cuda/implicit_gemm/weight_parameters.cuh"

namespace unfoldconv::cuda {
namespace {

struct PackedPhase {
  int64_t first, tap_offset, first_row;  // `first` element of the phase in packed
  Divider<int64_t> rows, taps;
  Unraveler<3, int64_t> kernel, variants;
};

struct PackedOrder {
  Divider<int64_t> padded_channels, rows_of_variant;
  int64_t channels, stride[3], axis_stride[3], variant_stride[3];
  int64_t count;
  int phase_count;
  PackedPhase phases[kMaxPhases];
};
static_assert(sizeof(PackedOrder) + 2 * sizeof(void*) <= kParameterBytes);

template <class T>
__global__ void __launch_bounds__(kThreads)
    pack(const T* __restrict__ weights, T* __restrict__ packed, const __grid_constant__ PackedOrder order) {
  for_each_item(order.count, [&](int64_t item) {
    int of_item = 0;
    while (of_item + 1 < order.phase_count && item >= order.phases[of_item + 1].first) ++of_item;
    const PackedPhase& phase = order.phases[of_item];
    int64_t group = item - phase.first;
    const int64_t channel = order.padded_channels.divide(group), tap = phase.taps.divide(group);
    int64_t variant = phase.rows.divide(group) + phase.first_row;
    const int64_t row = order.rows_of_variant.divide(variant);
    int64_t index[3], shift[3];
    phase.kernel(tap, index);
    phase.variants(variant, shift);
    int64_t offset = phase.tap_offset + group * order.stride[0] + row * order.stride[1] + channel * order.stride[2];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      offset += index[axis] * order.axis_stride[axis] + shift[axis] * order.variant_stride[axis];
    packed[item] = channel < order.channels ? weights[offset] : T{};
  });
}

// Blocks with tiles of a shape.
template <class Shape>
int64_t blocks_of(const GemmCorrelation& problem) {
  int64_t blocks = 0;
  for (int i = 0; i < problem.phase_count; ++i) {
    const GemmPhase& phase = problem.phases[i];
    const int64_t positions = problem.output_layout.count[0] * phase.position_numel();
    blocks += ceil_div(positions, Shape::kM) * problem.groups * ceil_div(phase.rows, Shape::kN);
  }
  return blocks;
}

template <class Shape>
GemmTiles tiles_of(const GemmCorrelation& problem) {
  static_assert(Shape::kM >= kLeastTile && Shape::kN >= kLeastTile);
  return {Shape::kM, Shape::kN, blocks_of<Shape>(problem)};
}

bool is_wide(const GemmCorrelation& problem) {
  const auto begin = problem.phases, end = begin + problem.phase_count;
  const bool is_cut = std::any_of(begin, end, [](const GemmPhase& phase) { return phase.segments > 1; });
  if (is_cut && !problem.image_pieces) return false;  // kMayCut
  return std::any_of(begin, end, [](const GemmPhase& phase) { return phase.rows > NarrowTile::kN; }) &&
         blocks_of<WideTile>(problem) >= limits.busy;
}

}  // namespace

double gemm_index_limit() { return std::min(limits.index, double{1 << 30}); }

GemmTiles gemm_tiles(const GemmCorrelation& problem) {
  if (problem.dtype == ScalarType::Double) return tiles_of<DoubleTile>(problem);
  return is_wide(problem) ? tiles_of<WideTile>(problem) : tiles_of<NarrowTile>(problem);
}

void cut_sums(ScalarType dtype, int64_t channels, int64_t groups, std::vector<GemmPhase>& phases) {
  constexpr int64_t few = 128;  // blocks of an image
  const bool is_double = dtype == ScalarType::Double;
  const int64_t tile_positions = is_double ? DoubleTile::kM : NarrowTile::kM;
  const int64_t tile_rows = is_double ? DoubleTile::kN : NarrowTile::kN;
  int64_t blocks = 0;
  for (const GemmPhase& phase : phases)
    blocks += ceil_div(phase.position_numel(), tile_positions) * groups * ceil_div(phase.rows, tile_rows);
  for (GemmPhase& phase : phases) {
    const int64_t pieces = phase.tap_numel() * ceil_div(channels * element_size(dtype), kGemmPieceBytes);
    const int64_t chunks = ceil_div(pieces, kPieces);
    const int64_t wanted = std::min({few / blocks, chunks / limits.segment, kMostSegments});
    if (wanted > 1) phase.segments = ceil_div(chunks, ceil_div(chunks, wanted));  // none is empty
  }
}

GemmPlan gemm_plan(const GemmCorrelation& problem, int64_t room) {
  const GemmTiles tiles = gemm_tiles(problem);
  const int64_t sum_size = problem.dtype == ScalarType::Double ? sizeof(double) : sizeof(float);
  const int64_t tile_bytes = tiles.positions * tiles.rows * sum_size;
  bool is_cut = false;
  int64_t items = 0;
  for (int i = 0; i < problem.phase_count; ++i) {
    const GemmPhase& phase = problem.phases[i];
    const int64_t positions = problem.output_layout.count[0] * phase.position_numel();
    items += ceil_div(positions, tiles.positions) * problem.groups * ceil_div(phase.rows, tiles.rows) * phase.segments;
    is_cut |= phase.segments > 1;
  }
  if (!is_cut) return {false, 0, tiles.blocks};
  if (tiles.blocks < limits.busy && items * tile_bytes <= room) return {true, items * tile_bytes, items};
  const int64_t blocks = std::clamp<int64_t>(room / tile_bytes, 1, tiles.blocks);
  return {false, blocks * tile_bytes, blocks};
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

void pack_weights(void* stream, const WeightTaps& weights, const GemmCorrelation& problem, void* packed) {
  const auto& [count, stride, axis_stride] = weights.layout;
  const int64_t bytes = element_size(problem.dtype);
  const int64_t padded = ceil_div(count[2], kGemmPieceBytes / bytes) * (kGemmPieceBytes / bytes);
  PackedOrder order{};
  order.padded_channels = Divider<int64_t>(padded);
  order.rows_of_variant = Divider<int64_t>(count[1]);
  order.channels = count[2];
  std::copy(stride, stride + 3, order.stride);
  std::copy(axis_stride, axis_stride + 3, order.axis_stride);
  std::copy(weights.variant_stride, weights.variant_stride + 3, order.variant_stride);
  for (int i = 0; i < problem.phase_count; ++i) {
    const GemmPhase& from = problem.phases[i];
    if (from.tap_numel() == 0) continue;
    order.phases[order.phase_count++] = {from.weight.offset,
                                         from.tap_offset,
                                         from.first_row,
                                         Divider<int64_t>(from.rows),
                                         Divider<int64_t>(from.tap_numel()),
                                         Unraveler<3, int64_t>(from.kernel),
                                         Unraveler<3, int64_t>(from.run)};
    order.count = from.weight.offset + problem.groups * from.rows * from.tap_numel() * padded;
  }
  const auto run = [&]<class T>(Type<T>) {
    launch(pack<T>, Grid::of_items(order.count), stream, static_cast<const T*>(weights.data), static_cast<T*>(packed),
           order);
  };
  if (bytes == 2)
    run(Type<uint16_t>{});
  else if (bytes == 4)
    run(Type<uint32_t>{});
  else
    run(Type<uint64_t>{});
}

}  // namespace unfoldconv::cuda
