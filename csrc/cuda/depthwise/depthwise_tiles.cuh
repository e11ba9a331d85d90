// Which tile a block of the direct kernels gets: the cheapest of those that fit into shared memory, by a count of
// instructions. The constants are rough; what they must get right is that halos, idle threads, sectors of memory that
// are fetched for a few of their bytes, and a GPU that is not filled all cost something.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/shared/launch.cuh"

namespace unfoldconv::cuda {

constexpr int kStrip = 8;  // results along y, or rows of a weight sum, that a thread holds in registers

struct DirectTile {
  int64_t units = 1;                // groups
  int64_t outputs = 1, inputs = 1;  // channels of a group at a time: of the result and of the source
  int64_t size[3] = {1, 1, 1};      // results along each axis; along y whole strips

  int64_t strips() const { return size[0] * (size[1] / kStrip) * size[2]; }
};

constexpr double kInstructionsToMove = 8;      // an element from or to global memory
constexpr double kInstructionsOfABlock = 5e3;  // for indices and barriers
constexpr double kBlocksThatFillAGpu = 512;

// The threads of a block in which `busy` ones have something to add up and `moved` elements are moved: whole warps, and
// enough for the latter not to take longer than need be.
inline int threads_of_block(int64_t busy, int64_t moved) {
  const int64_t threads = std::min<int64_t>(kThreads, std::max(busy, moved / 16));
  return static_cast<int>((std::max<int64_t>(threads, 1) + 31) / 32 * 32);
}

// Calls f(tile) for the tiles worth considering of planes with `results` results along each axis and up to `groups`
// groups of them, of at most `most_strips` strips.
template <class F>
void for_each_tile_shape(const int64_t (&results)[3], int64_t groups, int64_t most_strips, F&& f) {
  const auto part = [](int64_t size, int64_t most) {  // equal parts rather than a small last one
    const int64_t count = (size + most - 1) / most;
    return (size + count - 1) / count;
  };
  const int64_t strips = (results[1] + kStrip - 1) / kStrip;
  for (int64_t x = 8;; x *= 2) {
    for (int64_t y = 1;; y *= 2) {
      for (int64_t z = 1;; z *= 2) {
        DirectTile tile;
        tile.size[2] = part(results[2], x), tile.size[1] = part(strips, y) * kStrip, tile.size[0] = part(results[0], z);
        for (int64_t units = 1;; units *= 2) {
          tile.units = std::min(units, groups);
          if (tile.units * tile.strips() <= most_strips) f(tile);
          if (units >= groups || units * tile.strips() > most_strips) break;
        }
        if (z >= results[0] || tile.strips() > most_strips) break;
      }
      if (y >= strips || y > most_strips) break;
    }
    if (x >= results[2] || x > most_strips) break;
  }
}

}  // namespace unfoldconv::cuda
