// What both passes of the columns engine share: how large chunks are, and the columns of one.
#pragma once

#include <algorithm>

#include "columns/columns.h"
#include "problem/integer_math.h"
#include "problem/matrices.h"
#include "problem/planes.h"
#include "runtime/workspace.h"

namespace unfoldconv::columns {

constexpr int64_t kCpuChunks = 8;         // a CPU problem is cut into at least about this many
constexpr int64_t kMinPositions = 128;    // fewer columns than this make a poor matrix product
constexpr int64_t kWidePositions = 1024;  // from here on the columns of one image make a good one

constexpr const char* kWhy = "the device, the dtype or the size has no engine of its own";

inline int64_t limit_of(const Place& place) { return place.cuda ? workspace_limit().cuda : workspace_limit().cpu; }

// Chunks that a problem should have for the sake of threads.
inline int64_t parts_of(const Place& place) { return place.cuda ? 1 : kCpuChunks; }

// How many of `total` items form a chunk: as many as `room` holds at `bytes` each, at least one, and at most what
// leaves `parts` chunks.
inline int64_t chunk_of(int64_t total, int64_t room, int64_t bytes, int64_t parts) {
  const int64_t most = std::min(room / std::max<int64_t>(1, bytes), ceil_div(total, std::max<int64_t>(1, parts)));
  return std::clamp<int64_t>(most, 1, std::max<int64_t>(1, total));
}

// Whether the columns of several images are set side by side, as one wider matrix for each group: a few columns make a
// poor matrix product.
inline bool side_by_side(const Place& place, int64_t images, int64_t positions) {
  return !place.cuda && images > 1 && positions < kWidePositions;
}

// Whether the columns of `planes` are the planes themselves: the window is a single tap that reads every element in
// order.
template <int Rank>
bool are_columns(const Planes<Rank>& planes, const Geometry<Rank>& geometry) {
  const auto& [count, stride, axis_stride] = planes.layout;
  int64_t numel = 1;
  for (int axis = Rank - 1; axis >= 0; --axis) {
    if (geometry.kernel[axis] != 1 || geometry.stride[axis] != 1 || geometry.padding_low[axis] != 0 ||
        geometry.positions[axis] != geometry.image[axis] || axis_stride[axis] != numel)
      return false;
    numel *= geometry.image[axis];
  }
  const bool evenly_spaced = count[0] == 1 || count[1] == 1 || stride[0] == count[1] * stride[1];
  return evenly_spaced && stride[2] >= numel;
}

// The columns of `part` as matrices [channels * taps, range.count], one for each image and group: gathered into
// `buffer`, or where they lie. Side by side there is one for each group, [channels * taps, images * range.count].
template <int Rank>
Matrices columns_of(const Place& place, const Planes<Rank>& part, const Geometry<Rank>& geometry, PositionRange range,
                    void* buffer, ScalarType dtype) {
  const auto& [count, stride, axis_stride] = part.layout;
  const int64_t rows = count[2] * geometry.tap_numel();
  if (side_by_side(place, count[0], range.count)) {
    const int64_t width = count[0] * range.count;
    for (int64_t image = 0; image < count[0]; ++image) {
      const Planes<Rank> one = part.at(image, 0).counted(1, count[1], count[2]);
      im2col<Rank>(place, one.data, one.dtype, one.layout, geometry, range,
                   static_cast<char*>(buffer) + image * range.count * element_size(dtype), dtype, width);
    }
    return row_major(buffer, rows, width);
  }
  if (part.dtype == dtype && are_columns(part, geometry))
    return {part.data + range.first * element_size(dtype), count[2],  range.count,
            count[1] > 1 ? stride[1] : stride[0],          stride[2], 1};
  im2col<Rank>(place, part.data, part.dtype, part.layout, geometry, range, buffer, dtype);
  return row_major(buffer, rows, range.count);
}

}  // namespace unfoldconv::columns
