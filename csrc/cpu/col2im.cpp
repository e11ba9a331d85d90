// col2im on the CPU.
//
//   columns  [batch, channels * taps, positions], any strides
//   image    [batch, channels, *sizes], contiguous
//
// One task owns a run of image rows (runs along the last axis) and sums into each, tap by tap in row-major order, every
// column element that reads it. One writer per element and one order of summation: deterministic for any thread count.
#include <algorithm>

#include "../columns.h"
#include "../scalar.h"
#include "parallel.h"
#include "rows.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kTile = 512;  // elements of an image row summed at a time, on the stack

// The tap's contribution to elements [first, first + count) of the image row at `row_index`. `plane` holds the columns
// of one plane; `sums` the tile.
template <class T, int Rank>
void add_tap(const T* tap_columns, int64_t position_stride, const Geometry<Rank>& geometry, const int64_t (&tap)[Rank],
             const int64_t (&row_index)[Rank], int64_t first, int64_t count, Accumulator<T>* sums) {
  constexpr int last = Rank - 1;
  int64_t row_position = 0;  // flat index of the position (.., 0) that reads this image row
  for (int axis = 0; axis < last; ++axis) {
    const int64_t reached = row_index[axis] + geometry.padding_low[axis] - tap[axis] * geometry.dilation[axis];
    if (reached < 0 || reached % geometry.stride[axis] != 0) return;
    const int64_t position = reached / geometry.stride[axis];
    if (position >= geometry.positions[axis]) return;
    row_position = row_position * geometry.positions[axis] + position;
  }
  row_position *= geometry.positions[last];
  const int64_t stride = geometry.stride[last];
  const int64_t shift = tap[last] * geometry.dilation[last] - geometry.padding_low[last];
  const int64_t begin = ceil_div(std::max<int64_t>(0, first - shift), stride);
  const int64_t end = std::min(geometry.positions[last], ceil_div(std::max<int64_t>(0, first + count - shift), stride));
  const T* source = tap_columns + row_position * position_stride;
  for (int64_t position = begin; position < end; ++position)
    sums[position * stride + shift - first] += static_cast<Accumulator<T>>(source[position * position_stride]);
}

}  // namespace

template <int Rank>
void col2im(const void* columns, ScalarType dtype, int64_t batch, int64_t channels, const int64_t (&column_stride)[3],
            const Geometry<Rank>& geometry, void* image) {
  constexpr int last = Rank - 1;
  const int64_t row_length = geometry.image[last];
  const int64_t image_numel = geometry.image_numel();
  if (image_numel == 0) return;
  const int64_t rows_per_plane = image_numel / row_length;
  const int64_t taps = geometry.tap_numel();
  dispatch_sum(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_over(batch * channels * rows_per_plane, row_length * taps * sizeof(T), [&](int64_t begin, int64_t end) {
      Accumulator<T> sums[kTile];
      for (int64_t row = begin; row < end; ++row) {
        const int64_t plane = row / rows_per_plane;
        int64_t row_index[Rank];
        unravel<Rank>(row % rows_per_plane * row_length, geometry.image, row_index);
        const T* plane_columns = static_cast<const T*>(columns) + plane / channels * column_stride[0] +
                                 plane % channels * taps * column_stride[1];
        T* output = static_cast<T*>(image) + row * row_length;
        for (int64_t first = 0; first < row_length; first += kTile) {
          const int64_t count = std::min(kTile, row_length - first);
          std::fill_n(sums, count, Accumulator<T>{});
          int64_t tap[Rank] = {};
          for (int64_t flat = 0; flat < taps; ++flat) {
            add_tap<T, Rank>(plane_columns + flat * column_stride[1], column_stride[2], geometry, tap, row_index, first,
                             count, sums);
            for (int axis = last; axis >= 0 && ++tap[axis] == geometry.kernel[axis]; --axis) tap[axis] = 0;
          }
          for (int64_t i = 0; i < count; ++i) output[first + i] = static_cast<T>(sums[i]);
        }
      }
    });
  });
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                                 \
  template void col2im<RANK>(const void*, ScalarType, int64_t, int64_t, const int64_t (&)[3], const Geometry<RANK>&, \
                             void*);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
