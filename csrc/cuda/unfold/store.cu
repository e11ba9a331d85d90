// store on CUDA: the epilogue of a matrix product.
//
//   values  [planes, range.count], contiguous
//   bias    one number per (middle, inner) plane index, or null
//   output  planes of any strides
//
//   output[plane, position(p)] (+)= values[plane, p] + bias[plane], rounded to the type of output once
//
// Every element of output is written by one thread. Warps always read along the positions. They write along the
// positions too (store_items), or along the planes where those lie closer together (store_tiles).
#include "columns/columns.h"
#include "cuda/shared/index.cuh"
#include "cuda/shared/launch.cuh"
#include "cuda/shared/tile.cuh"

namespace unfoldconv::cuda {
namespace {

// --- kernels ---------------------------------------------------------------------------------------------------------

template <int Rank, class Index, class To>
struct Output {
  To* data;
  const To* bias;
  Planes<Index> planes;
  Unraveler<Rank, Index> positions;
  Index axis_stride[Rank];
  Index first;  // of the range of positions
  bool accumulate;

  template <class From>
  __device__ __forceinline__ void store(Index plane_index, Index position, From value) const {
    const auto plane = planes.locate(plane_index);
    Index index[Rank];
    positions(first + position, index);
    Index offset = planes.offset(plane);
#pragma unroll
    for (int axis = 0; axis < Rank; ++axis) offset += index[axis] * axis_stride[axis];

    auto sum = convert<Accumulator<To>>(value);
    if (bias != nullptr)
      sum += convert<Accumulator<To>>(bias[plane.middle * planes.inner_count.divisor() + plane.inner]);
    if (accumulate) sum += convert<Accumulator<To>>(data[offset]);
    data[offset] = convert<To>(sum);
  }
};

template <int Rank, class Index, class From, class To>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Index>)
    store_items(const From* __restrict__ values, const __grid_constant__ Output<Rank, Index, To> output,
                const __grid_constant__ Divider<Index> positions, Index count) {
  for_each_item(count, [&](Index item) {
    Index plane = item;
    const Index position = positions.divide(plane);
    output.store(plane, position, values[item]);
  });
}

template <int Rank, class Index, class From, class To>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Index>)
    store_tiles(const From* __restrict__ values, const __grid_constant__ Output<Rank, Index, To> output,
                const __grid_constant__ Tiling<Index> tiles) {
  constexpr int steps = kTile / kTileRows;
  __shared__ TileBuffer<From> buffer;
  const TileThread thread;

  for_each_tile(tiles.count, [&](Index item) {
    const auto tile = tiles[item];
#pragma unroll
    for (int i = 0; i < steps; ++i) {
      const int plane = thread.row + i * kTileRows;
      if (plane < tile.planes && thread.lane < tile.positions)
        buffer[thread.lane][plane] =
            values[(tile.first_plane + plane) * tiles.position_count + tile.first_position + thread.lane];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < steps; ++i) {
      const int position = thread.row + i * kTileRows;
      if (position < tile.positions && thread.lane < tile.planes)
        output.store(tile.first_plane + thread.lane, tile.first_position + position, buffer[position][thread.lane]);
    }
    __syncthreads();  // the next tile goes into the same buffer
  });
}

// --- launcher --------------------------------------------------------------------------------------------------------

// What store() was asked for.
struct Request {
  void* stream;
  const void* values;
  ScalarType from;
  const void* bias;
  PositionRange range;
  void* output;
  ScalarType to;
  bool accumulate;
};

// The largest number that the index maths above meets.
template <int Rank>
double largest_index(const PlaneLayout<Rank>& layout, const int64_t (&positions)[Rank], PositionRange range) {
  double result = std::max({static_cast<double>(layout.plane_numel()) * static_cast<double>(range.count),
                            largest_offset(layout, positions), static_cast<double>(range.first) + range.count + kTile,
                            static_cast<double>(layout.plane_numel()) + kTile});
  for (int axis = 0; axis < Rank; ++axis) result = std::max(result, static_cast<double>(positions[axis]));
  return result;
}

template <int Rank, class Index, class From, class To>
void launch_store(const Request& request, const int64_t (&positions)[Rank], const PlaneLayout<Rank>& layout) {
  Output<Rank, Index, To> output = {static_cast<To*>(request.output),
                                    static_cast<const To*>(request.bias),
                                    Planes<Index>(layout),
                                    Unraveler<Rank, Index>(positions),
                                    {},
                                    static_cast<Index>(request.range.first),
                                    request.accumulate};
  std::copy(layout.axis_stride, layout.axis_stride + Rank, output.axis_stride);
  const auto* values = static_cast<const From*>(request.values);
  if constexpr (has_tiles<Index, To>) {
    if (is_plane_minor(layout)) {
      const Tiling<Index> tiles(layout, request.range.count);
      return launch(store_tiles<Rank, Index, From, To>, Grid{tiles.count}, request.stream, values, output, tiles);
    }
  }
  const int64_t count = layout.plane_numel() * request.range.count;
  launch(store_items<Rank, Index, From, To>, Grid::of_items(count), request.stream, values, output,
         Divider<Index>(request.range.count), static_cast<Index>(count));
}

template <int Rank, class Index, class From, class To>
void store_as(const Request& request, const int64_t (&positions)[Rank], const PlaneLayout<Rank>& layout) {
  if constexpr (kKernelRank<1, Index, std::is_same_v<Accumulator<To>, float>> == 1) {
    bool evenly_spaced = true;
    for (int axis = 1; axis < Rank; ++axis)
      evenly_spaced &= layout.axis_stride[axis - 1] == positions[axis] * layout.axis_stride[axis];
    if (evenly_spaced) {  // as the positions of every contiguous or channels_last tensor are: then they are one axis
      PlaneLayout<1> line = {};
      std::copy(layout.count, layout.count + 3, line.count);
      std::copy(layout.stride, layout.stride + 3, line.stride);
      line.axis_stride[0] = layout.axis_stride[Rank - 1];
      const int64_t length[] = {Geometry<Rank>::product(positions)};
      return launch_store<1, Index, From, To>(request, length, line);
    }
  }
  int64_t sizes[] = {1, 1, 1};
  std::copy(positions, positions + Rank, sizes + 3 - Rank);
  launch_store<3, Index, From, To>(request, sizes, with_leading_axes<3>(layout));
}

}  // namespace

template <int Rank>
void store(void* stream, const void* values, ScalarType from, const void* bias, PositionRange range,
           const int64_t (&positions)[Rank], const PlaneLayout<Rank>& layout, void* output, ScalarType to,
           bool accumulate) {
  const Request request = {stream, values, from, bias, range, output, to, accumulate};
  dispatch_store(from, to, [&](auto from_type, auto to_type) {
    with_index(largest_index(layout, positions, range), [&](auto index_type) {
      using From = typename decltype(from_type)::type;
      using To = typename decltype(to_type)::type;
      using Index = typename decltype(index_type)::type;
      store_as<Rank, Index, From, To>(request, positions, layout);
    });
  });
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                             \
  template void store<RANK>(void*, const void*, ScalarType, const void*, PositionRange, const int64_t (&)[RANK], \
                            const PlaneLayout<RANK>&, void*, ScalarType, bool);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cuda
