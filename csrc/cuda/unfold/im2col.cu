// im2col on CUDA.
//
//   image    planes of any strides
//   columns  [planes, taps, range.count], contiguous
//
//   columns[plane, tap, p] = image[plane, position(p) * stride - padding_low + tap * dilation], or 0 outside the image
//
// Every element of columns is written by one thread, and warps always write along the positions. They read along the
// positions too (gather), or along the planes where those lie closer together (gather_tiles).
#include "columns/columns.h"
#include "cuda/shared/index.cuh"
#include "cuda/shared/launch.cuh"
#include "cuda/shared/tile.cuh"

namespace unfoldconv::cuda {
namespace {

// --- what both kernels know ------------------------------------------------------------------------------------------

template <int Rank, class Index>
struct Window {
  Planes<Index> planes;
  Unraveler<Rank, Index> positions, kernel;
  Index image[Rank], stride[Rank], dilation[Rank], padding_low[Rank], axis_stride[Rank];
  Index first, count, taps;  // of the range of positions; count * taps is one plane of columns

  Window(const PlaneLayout<Rank>& layout, const Geometry<Rank>& geometry, PositionRange range)
      : planes(layout),
        positions(geometry.positions),
        kernel(geometry.kernel),
        first(range.first),
        count(range.count),
        taps(geometry.tap_numel()) {
    for (int axis = 0; axis < Rank; ++axis) {
      image[axis] = geometry.image[axis];
      stride[axis] = geometry.stride[axis];
      dilation[axis] = geometry.dilation[axis];
      padding_low[axis] = geometry.padding_low[axis];
      axis_stride[axis] = layout.axis_stride[axis];
    }
  }

  // The image index that tap 0 reads at a position of the range.
  __device__ __forceinline__ void corner(Index position, Index (&result)[Rank]) const {
    positions(first + position, result);
#pragma unroll
    for (int axis = 0; axis < Rank; ++axis) result[axis] = result[axis] * stride[axis] - padding_low[axis];
  }

  // Adds to `offset` where the tap lies along one axis, and returns whether that is inside the image.
  __device__ __forceinline__ bool reach(int axis, Index corner, Index tap, Index& offset) const {
    using Unsigned = std::make_unsigned_t<Index>;
    const Index index = corner + tap * dilation[axis];
    const bool inside = static_cast<Unsigned>(index) < static_cast<Unsigned>(image[axis]);
    if (inside) offset += index * axis_stride[axis];
    return inside;
  }
};

// The largest number that the index maths above and below meets.
template <int Rank>
double largest_index(const PlaneLayout<Rank>& layout, const Geometry<Rank>& geometry, PositionRange range) {
  const double columns =
      static_cast<double>(layout.plane_numel()) * geometry.tap_numel() * static_cast<double>(range.count);
  double result = std::max({columns, largest_offset(layout, geometry.image),
                            static_cast<double>(range.first) + range.count + kTile, layout.count[2] + double{kTile}});
  for (int axis = 0; axis < Rank; ++axis)
    result = std::max(result, static_cast<double>(geometry.positions[axis]) * geometry.stride[axis] +
                                  std::fabs(static_cast<double>(geometry.padding_low[axis])) +
                                  static_cast<double>(geometry.kernel[axis]) * geometry.dilation[axis] +
                                  geometry.image[axis]);
  return result;
}

// How many parts the taps of a plane are split into, so that even a small image has work for a whole GPU.
int64_t tap_slices(int64_t units, int64_t enough_units, int64_t taps) {
  return std::clamp<int64_t>(enough_units / std::max<int64_t>(units, 1), 1, taps);
}

// --- reading along positions -----------------------------------------------------------------------------------------

// An item is Width neighbouring positions in one row of one plane, for one slice of the kernel's rows (its taps that
// differ along the last axis alone). Positions are the fastest index of items, then slices, then planes.
template <int Rank, class Index>
struct GatherItems {
  Divider<Index> groups, slices;
  Index rows, rows_per_slice, row_taps, count;
  bool slides;  // whether each tap of a row reads what its neighbour reads one position further

  GatherItems(const PlaneLayout<Rank>& layout, const Geometry<Rank>& geometry, PositionRange range, int width) {
    constexpr int64_t enough = 1 << 18;  // threads that a large GPU holds at a time
    const int64_t group_count = range.count / width;
    row_taps = geometry.kernel[Rank - 1];
    rows = geometry.tap_numel() / row_taps;
    rows_per_slice = ceil_div(rows, tap_slices(layout.plane_numel() * group_count, enough, rows));
    const int64_t slice_count = ceil_div(rows, rows_per_slice);
    groups = Divider<Index>(group_count);
    slices = Divider<Index>(slice_count);
    count = layout.plane_numel() * slice_count * group_count;
    slides = geometry.stride[Rank - 1] == geometry.dilation[Rank - 1];
  }
};

template <int Rank, class Index, class From, class To, int Width>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Index>)
    gather(const From* __restrict__ image, To* __restrict__ columns, const __grid_constant__ Window<Rank, Index> window,
           const __grid_constant__ GatherItems<Rank, Index> items) {
  constexpr int last = Rank - 1;
  struct alignas(Width * sizeof(To)) Group {
    To value[Width];
  };

  for_each_item(items.count, [&](Index item) {
    const Index position = items.groups.divide(item) * Width;
    Index row = items.slices.divide(item) * items.rows_per_slice;
    const Index row_end = min(row + items.rows_per_slice, items.rows);
    const Index plane = item;

    Index corner[Rank];
    window.corner(position, corner);
    const From* const origin = image + window.planes.offset(window.planes.locate(plane));
    To* to = columns + (plane * window.taps + row * items.row_taps) * window.count + position;

    for (; row < row_end; ++row) {
      Index tap[Rank];
      window.kernel(row * items.row_taps, tap);
      Index row_offset = 0;
      bool row_inside = true;
#pragma unroll
      for (int axis = 0; axis < last; ++axis) row_inside &= window.reach(axis, corner[axis], tap[axis], row_offset);
      const auto load = [&](int i, Index last_tap) {
        Index offset = row_offset;
        const bool inside = row_inside & window.reach(last, corner[last] + i * window.stride[last], last_tap, offset);
        return inside ? convert<To>(origin[offset]) : To{};
      };

      Group group;
#pragma unroll
      for (int i = 0; i < Width; ++i) group.value[i] = load(i, 0);
      *reinterpret_cast<Group*>(to) = group;
      to += window.count;
      for (Index last_tap = 1; last_tap < items.row_taps; ++last_tap, to += window.count) {
        if (Width > 1 && items.slides) {
#pragma unroll
          for (int i = 0; i + 1 < Width; ++i) group.value[i] = group.value[i + 1];
          group.value[Width - 1] = load(Width - 1, last_tap);
        } else {
#pragma unroll
          for (int i = 0; i < Width; ++i) group.value[i] = load(i, last_tap);
        }
        *reinterpret_cast<Group*>(to) = group;
      }
    }
  });
}

// --- reading along planes --------------------------------------------------------------------------------------------

template <class Index>
struct TileItems {
  Tiling<Index> tiles;
  Divider<Index> slices;
  Index taps_per_slice, count;

  template <int Rank>
  TileItems(const PlaneLayout<Rank>& layout, const Geometry<Rank>& geometry, PositionRange range)
      : tiles(layout, range.count) {
    constexpr int64_t enough = 1 << 10;  // blocks that a large GPU holds at a time
    const int64_t taps = geometry.tap_numel();
    taps_per_slice = ceil_div(taps, tap_slices(tiles.count, enough, taps));
    const int64_t slice_count = ceil_div(taps, taps_per_slice);
    slices = Divider<Index>(slice_count);
    count = tiles.count * slice_count;
  }
};

// A block owns the columns of one tile for one slice of the taps.
template <int Rank, class Index, class From, class To>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Index>)
    gather_tiles(const From* __restrict__ image, To* __restrict__ columns,
                 const __grid_constant__ Window<Rank, Index> window, const __grid_constant__ TileItems<Index> items) {
  constexpr int steps = kTile / kTileRows;
  // Two buffers, so that one barrier a tap is enough: whoever writes a buffer again has passed the barrier that
  // everybody reaches only after reading it.
  __shared__ TileBuffer<To> buffers[2];
  int current = 0;
  const TileThread thread;

  for_each_tile(items.count, [&](Index item) {
    Index tap = items.slices.divide(item) * items.taps_per_slice;
    const Index tap_end = min(tap + items.taps_per_slice, window.taps);
    const auto tile = items.tiles[item];

    // Beyond the last plane or position the last one is read again, which saves a condition and is never written.
    const Index plane = tile.first_plane + min(static_cast<Index>(thread.lane), tile.planes - 1);
    const From* const origin = image + window.planes.offset(window.planes.locate(plane));
    Index corner[steps][Rank];
#pragma unroll
    for (int i = 0; i < steps; ++i)
      window.corner(tile.first_position + min(static_cast<Index>(thread.row + i * kTileRows), tile.positions - 1),
                    corner[i]);

    for (; tap < tap_end; ++tap, current ^= 1) {
      auto& buffer = buffers[current];
      Index tap_index[Rank];
      window.kernel(tap, tap_index);
#pragma unroll
      for (int i = 0; i < steps; ++i) {
        Index offset = 0;
        bool inside = true;
#pragma unroll
        for (int axis = 0; axis < Rank; ++axis) inside &= window.reach(axis, corner[i][axis], tap_index[axis], offset);
        buffer[thread.row + i * kTileRows][thread.lane] = inside ? convert<To>(origin[offset]) : To{};
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < steps; ++i) {
        const int plane_of_tile = thread.row + i * kTileRows;
        if (plane_of_tile < tile.planes && thread.lane < tile.positions)
          columns[((tile.first_plane + plane_of_tile) * window.taps + tap) * window.count + tile.first_position +
                  thread.lane] = buffer[thread.lane][plane_of_tile];
      }
    }
  });
}

// --- choosing a kernel -----------------------------------------------------------------------------------------------

// Whether every row of positions begins where a group of `width` elements of columns may, and holds whole groups.
template <int Rank, class To>
bool rows_hold_groups(const To* columns, const Geometry<Rank>& geometry, PositionRange range, int width) {
  return geometry.positions[Rank - 1] % width == 0 && range.first % width == 0 && range.count % width == 0 &&
         reinterpret_cast<uintptr_t>(columns) % (width * sizeof(To)) == 0;
}

template <int Rank, class Index, class From, class To>
void gather_columns(void* stream, const From* image, const PlaneLayout<Rank>& layout, const Geometry<Rank>& geometry,
                    PositionRange range, To* columns) {
  const Window<Rank, Index> window(layout, geometry, range);
  if constexpr (has_tiles<Index, To>) {
    if (is_plane_minor(layout)) {
      const TileItems<Index> items(layout, geometry, range);
      return launch(gather_tiles<Rank, Index, From, To>, Grid{items.count}, stream, image, columns, window, items);
    }
  }
  const auto run = [&]<int Width>(std::integral_constant<int, Width>) {
    const GatherItems<Rank, Index> items(layout, geometry, range, Width);
    launch(gather<Rank, Index, From, To, Width>, Grid::of_items(items.count), stream, image, columns, window, items);
  };
  // 16 bytes a thread; or 4, with which a warp still writes a line, as it does with single elements of 8. Widening is
  // for the chunks of the columns engine, which are in cache.
  if constexpr (sizeof(Index) == 4 && sizeof(To) <= 4 && std::is_same_v<From, To>) {
    constexpr int width = 16 / sizeof(To);
    if (rows_hold_groups(columns, geometry, range, width)) return run(std::integral_constant<int, width>{});
  }
  if constexpr (sizeof(Index) == 4 && sizeof(To) < 4) {
    constexpr int width = 4 / sizeof(To);
    if (rows_hold_groups(columns, geometry, range, width)) return run(std::integral_constant<int, width>{});
  }
  run(std::integral_constant<int, 1>{});
}

}  // namespace

template <int Rank>
void im2col(void* stream, const void* image, ScalarType from, const PlaneLayout<Rank>& layout,
            const Geometry<Rank>& geometry, PositionRange range, void* columns, ScalarType to) {
  if (layout.plane_numel() == 0 || geometry.tap_numel() == 0 || range.count == 0) return;
  dispatch_gather(from, to, [&](auto from_type, auto to_type) {
    with_index(largest_index(layout, geometry, range), [&](auto index_type) {
      using From = typename decltype(from_type)::type;
      using To = typename decltype(to_type)::type;
      using Index = typename decltype(index_type)::type;
      constexpr bool common = sizeof(To) == 2 || sizeof(To) == 4;
      constexpr int rank = kKernelRank<Rank, Index, common>;
      gather_columns<rank, Index>(stream, static_cast<const From*>(image), with_leading_axes<rank>(layout),
                                  with_leading_axes<rank>(geometry), range, static_cast<To*>(columns));
    });
  });
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                          \
  template void im2col<RANK>(void*, const void*, ScalarType, const PlaneLayout<RANK>&, const Geometry<RANK>&, \
                             PositionRange, void*, ScalarType);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cuda
