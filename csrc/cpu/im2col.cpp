// im2col on the CPU.
//
//   image    planes of any strides
//   columns  [planes, taps, range.count], rows row_stride apart
//
// One task owns a run of rows of `columns` (a plane and a tap each); a row is copied piecewise along the last axis,
// where the positions that read inside the image form one interval, so the inner loop has no branch.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "../columns.h"
#include "../scalar.h"
#include "parallel.h"
#include "rows.h"

namespace unfoldconv::cpu {
namespace {

template <class From, class To>
void copy_strided(const From* from, int64_t step, To* to, int64_t count) {
  if constexpr (std::is_same_v<From, To>) {
    if (step == 1) {
      std::memcpy(to, from, count * sizeof(To));
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i * step]);
}

// One row of columns: what tap `tap` of `plane` reads at each position of `range`.
template <class From, class To, int Rank>
void gather_row(const From* plane, const int64_t (&axis_stride)[Rank], const Geometry<Rank>& geometry,
                const int64_t (&tap)[Rank], PositionRange range, To* row) {
  constexpr int last = Rank - 1;
  int64_t shift[Rank];  // image index = position * stride + shift
  for (int axis = 0; axis < Rank; ++axis)
    shift[axis] = tap[axis] * geometry.dilation[axis] - geometry.padding_low[axis];
  // Along the last axis the positions [inside_begin, inside_end) read inside the image.
  const int64_t stride = geometry.stride[last];
  const int64_t inside_begin = ceil_div(std::max<int64_t>(0, -shift[last]), stride);
  const int64_t inside_end = ceil_div(std::max<int64_t>(0, geometry.image[last] - shift[last]), stride);

  for_each_row<Rank>(range, geometry.positions, [&](const int64_t (&position)[Rank], int64_t length) {
    int64_t offset = 0;
    bool inside = true;
    for (int axis = 0; axis < last; ++axis) {
      const int64_t i = position[axis] * geometry.stride[axis] + shift[axis];
      inside &= i >= 0 && i < geometry.image[axis];
      offset += i * axis_stride[axis];
    }
    const int64_t start = position[last];
    const int64_t begin = inside ? std::clamp(inside_begin - start, int64_t{0}, length) : length;
    const int64_t end = inside ? std::clamp(inside_end - start, begin, length) : length;
    if (begin > 0) std::memset(static_cast<void*>(row), 0, begin * sizeof(To));
    if (begin < end)
      copy_strided(plane + offset + ((start + begin) * stride + shift[last]) * axis_stride[last],
                   stride * axis_stride[last], row + begin, end - begin);
    if (end < length) std::memset(static_cast<void*>(row + end), 0, (length - end) * sizeof(To));
    row += length;
  });
}

}  // namespace

template <int Rank>
void im2col(const void* image, ScalarType from, const PlaneLayout<Rank>& layout, const Geometry<Rank>& geometry,
            PositionRange range, void* columns, ScalarType to, int64_t row_stride) {
  const int64_t taps = geometry.tap_numel();
  dispatch_gather(from, to, [&](auto from_type, auto to_type) {
    using From = typename decltype(from_type)::type;
    using To = typename decltype(to_type)::type;
    parallel_over(layout.plane_numel() * taps, range.count * sizeof(To), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int64_t tap[Rank];
        unravel<Rank>(row % taps, geometry.kernel, tap);
        gather_row<From, To, Rank>(static_cast<const From*>(image) + layout.plane_offset(row / taps),
                                   layout.axis_stride, geometry, tap, range,
                                   static_cast<To*>(columns) + row * row_stride);
      }
    });
  });
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                                  \
  template void im2col<RANK>(const void*, ScalarType, const PlaneLayout<RANK>&, const Geometry<RANK>&, PositionRange, \
                             void*, ScalarType, int64_t);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
