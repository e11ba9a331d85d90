// store on the CPU: the epilogue of a matrix product.
//
//   values  [planes, range.count], planes value_stride apart
//   output  planes of any strides
//
// One task owns a run of planes.
#include "columns/columns.h"
#include "problem/scalar.h"
#include "runtime/parallel.h"
#include "runtime/rows.h"

namespace unfoldconv::cpu {

template <int Rank>
void store(const void* values, ScalarType from, const void* bias, PositionRange range, const int64_t (&positions)[Rank],
           const PlaneLayout<Rank>& layout, void* output, ScalarType to, bool accumulate, int64_t value_stride) {
  constexpr int last = Rank - 1;
  const int64_t bias_numel = layout.count[1] * layout.count[2];
  dispatch_store(from, to, [&](auto from_type, auto to_type) {
    using From = typename decltype(from_type)::type;
    using To = typename decltype(to_type)::type;
    parallel_over(layout.plane_numel(), range.count * sizeof(From), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        using Sum = Accumulator<To>;
        Sum shift{};
        if (bias) shift = static_cast<Sum>(static_cast<const To*>(bias)[plane % bias_numel]);
        const From* source = static_cast<const From*>(values) + plane * value_stride;
        To* target = static_cast<To*>(output) + layout.plane_offset(plane);
        for_each_row<Rank>(range, positions, [&](const int64_t (&position)[Rank], int64_t length) {
          To* row = target;
          for (int axis = 0; axis < Rank; ++axis) row += position[axis] * layout.axis_stride[axis];
          const int64_t step = layout.axis_stride[last];
          for (int64_t i = 0; i < length; ++i) {
            Sum value = static_cast<Sum>(source[i]);
            value += shift;
            if (accumulate) value += static_cast<Sum>(row[i * step]);
            row[i * step] = static_cast<To>(value);
          }
          source += length;
        });
      }
    });
  });
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                      \
  template void store<RANK>(const void*, ScalarType, const void*, PositionRange, const int64_t (&)[RANK], \
                            const PlaneLayout<RANK>&, void*, ScalarType, bool, int64_t);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
