// The fill of fill.h: bytes are moved, so it is the same for every dtype of a size.
//
// Where channels are neighbours in memory a task owns some rows of positions of all channels, and otherwise some
// planes: memory is written in its order, each line of it once.
#include "cpu/correlate/fill.h"

#include <algorithm>

#include "runtime/parallel.h"
#include "runtime/rows.h"

namespace unfoldconv::cpu {

void fill(const Planes<3>& planes, const int64_t (&sizes)[3], const char* bias) {
  const PlaneLayout<3>& layout = planes.layout;
  const int64_t positions = Geometry<3>::product(sizes), row = sizes[2], step = layout.axis_stride[2];
  if (positions * layout.plane_numel() == 0) return;
  const int64_t groups = layout.count[1], channels = layout.count[2];
  dispatch_bytes(planes.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* const values = reinterpret_cast<const T*>(bias);
    T* const to = reinterpret_cast<T*>(planes.data);
    const auto offset_of = [&](const int64_t (&position)[3]) {
      int64_t offset = 0;
      for (int axis = 0; axis < 3; ++axis) offset += position[axis] * layout.axis_stride[axis];
      return offset;
    };
    if (layout.stride[2] == 1 && (groups == 1 || layout.stride[1] == channels)) {
      const int64_t width = groups * channels, rows = positions / row;
      parallel_over(layout.count[0] * rows, row * width * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          int64_t position[3];
          unravel<3>(item % rows * row, sizes, position);
          T* pixel = to + item / rows * layout.stride[0] + offset_of(position);
          for (int64_t i = 0; i < row; ++i, pixel += step)
            if (values)
              std::copy_n(values, width, pixel);
            else
              std::fill_n(pixel, width, T{});
        }
      });
      return;
    }
    parallel_over(layout.plane_numel(), positions * sizeof(T), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const T value = values ? values[plane % (groups * channels)] : T{};
        T* const target = to + layout.plane_offset(plane);
        for_each_row<3>({0, positions}, sizes, [&](const int64_t (&position)[3], int64_t length) {
          T* const elements = target + offset_of(position);
          for (int64_t i = 0; i < length; ++i) elements[i * step] = value;
        });
      }
    });
  });
}

}  // namespace unfoldconv::cpu
