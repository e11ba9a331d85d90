// Tiles of planes by positions, for tensors in which neighbouring planes lie closer together in memory than
// neighbouring positions do (channels_last). Columns and GEMM results are the other way round, so whichever way a warp
// went, it would touch one memory sector per element on one side. Instead a block carries a tile through shared memory:
// its warps go along the planes on the one side and along the positions on the other.
#pragma once

#include <cstdlib>

#include "cuda/shared/index.cuh"
#include "cuda/shared/launch.cuh"

namespace unfoldconv::cuda {

constexpr int kTile = 32;  // planes and positions; a warp moves one row or column of the tile
constexpr int kTileRows = kThreads / kTile;

// The tile as shared memory holds it: [position][plane], padded by one so that neither way meets bank conflicts.
template <class T>
using TileBuffer = T[kTile][kTile + 1];

// Tensors of more than 2^31 elements do without, as do elements of 16 bytes, of which a sector holds only two.
template <class Index, class T>
constexpr bool has_tiles = sizeof(Index) == 4 && sizeof(T) < 16;

// Below 8 planes neighbouring positions share the 32-byte sectors anyway, and most of a tile would be empty.
template <int Rank>
bool is_plane_minor(const PlaneLayout<Rank>& layout) {
  return layout.count[2] >= 8 && std::abs(layout.stride[2]) < std::abs(layout.axis_stride[Rank - 1]);
}

// Counts tiles, positions fastest. A tile holds planes of one group (outer and middle index), so they are equally
// spaced.
template <class Index>
struct Tiling {
  Divider<Index> position_tiles, plane_tiles;
  Index position_count, inner_count, count;

  template <int Rank>
  Tiling(const PlaneLayout<Rank>& layout, int64_t positions)
      : position_tiles(ceil_div(positions, kTile)),
        plane_tiles(ceil_div(layout.count[2], kTile)),
        position_count(positions),
        inner_count(layout.count[2]),
        count(layout.count[0] * layout.count[1] * ceil_div(layout.count[2], kTile) * ceil_div(positions, kTile)) {}

  struct Tile {
    Index first_plane, first_position;
    Index planes, positions;  // how many there are from the first one on; maybe more than fit into the tile
  };

  __device__ __forceinline__ Tile operator[](Index tile) const {
    Tile result;
    result.first_position = position_tiles.divide(tile) * kTile;
    result.positions = position_count - result.first_position;
    const Index first_inner = plane_tiles.divide(tile) * kTile;
    result.first_plane = tile * inner_count + first_inner;
    result.planes = inner_count - first_inner;
    return result;
  }
};

// Where a thread stands in a tile: it moves the elements (row + i * kTileRows, lane) for i in [0, kTile / kTileRows).
struct TileThread {
  int lane, row;

  __device__ __forceinline__ TileThread() : lane(threadIdx.x % kTile), row(threadIdx.x / kTile) {}
};

}  // namespace unfoldconv::cuda
