// The three kernels that every device must have, as the ops call them.
//
//   im2col   columns[plane, tap, p] = image[plane, position(p) * stride - padding_low + tap * dilation]
//            or 0 outside the image, for the positions p of `range`.
//   col2im   image[plane, i] = sum of columns[plane, tap, p] over every (tap, p) that reads i.
//            A gather: one writer per image element, so no atomics and a fixed order of summation.
//   store    output[plane, position(p)] (+)= values[plane, p] + bias[plane], for the positions of `range`.
//
// Planes are counted by PlaneLayout. columns of im2col and values of store are contiguous:
// [planes, taps, range.count] and [planes, range.count].
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "problem/geometry.h"
#include "runtime/place.h"

namespace unfoldconv {

using torch::headeronly::ScalarType;

// im2col: `to` is either `from` (bytes are moved: any dtype of 1, 2, 4, 8 or 16 bytes) or Float for Half and BFloat16.
//
// col2im: columns may have any strides: element (batch, channel * taps + tap, p) lies at
// batch * column_stride[0] + row * column_stride[1] + p * column_stride[2].
// The image [batch, channels, *sizes] is contiguous. 16-bit types accumulate in float, bool by "or".
//
// store: `values` are of type `from`, `bias` (may be null) and `output` of type `to`; `from` is `to`, or Float where
// `to` is Half or BFloat16. bias holds one number per (middle, inner) plane index; it is added before rounding to `to`.
// With `accumulate` the values are added to what stands in the output; then `from` is `to` and bias is null.

namespace cpu {
template <int Rank>
void im2col(const void* image, ScalarType from, const PlaneLayout<Rank>& layout, const Geometry<Rank>& geometry,
            PositionRange range, void* columns, ScalarType to, int64_t row_stride);
template <int Rank>
void col2im(const void* columns, ScalarType dtype, int64_t batch, int64_t channels, const int64_t (&column_stride)[3],
            const Geometry<Rank>& geometry, void* image);
template <int Rank>
void store(const void* values, ScalarType from, const void* bias, PositionRange range, const int64_t (&positions)[Rank],
           const PlaneLayout<Rank>& layout, void* output, ScalarType to, bool accumulate, int64_t value_stride);
}  // namespace cpu

namespace cuda {
template <int Rank>
void im2col(void* stream, const void* image, ScalarType from, const PlaneLayout<Rank>& layout,
            const Geometry<Rank>& geometry, PositionRange range, void* columns, ScalarType to);
template <int Rank>
void col2im(void* stream, const void* columns, ScalarType dtype, int64_t batch, int64_t channels,
            const int64_t (&column_stride)[3], const Geometry<Rank>& geometry, void* image);
template <int Rank>
void store(void* stream, const void* values, ScalarType from, const void* bias, PositionRange range,
           const int64_t (&positions)[Rank], const PlaneLayout<Rank>& layout, void* output, ScalarType to,
           bool accumulate);
}  // namespace cuda

// The kernel of the place. On the CPU the rows of columns and the planes of values may lie apart, as the parts of
// larger matrices do; a stride of 0 means that they do not.

template <int Rank>
void im2col([[maybe_unused]] const Place& place, const void* image, ScalarType from, const PlaneLayout<Rank>& layout,
            const Geometry<Rank>& geometry, PositionRange range, void* columns, ScalarType to,
            [[maybe_unused]] int64_t row_stride = 0) {
#ifdef UNFOLDCONV_WITH_CUDA
  if (place.cuda) return cuda::im2col<Rank>(place.stream, image, from, layout, geometry, range, columns, to);
#endif
  cpu::im2col<Rank>(image, from, layout, geometry, range, columns, to, row_stride ? row_stride : range.count);
}

template <int Rank>
void col2im([[maybe_unused]] const Place& place, const void* columns, ScalarType dtype, int64_t batch, int64_t channels,
            const int64_t (&column_stride)[3], const Geometry<Rank>& geometry, void* image) {
#ifdef UNFOLDCONV_WITH_CUDA
  if (place.cuda)
    return cuda::col2im<Rank>(place.stream, columns, dtype, batch, channels, column_stride, geometry, image);
#endif
  cpu::col2im<Rank>(columns, dtype, batch, channels, column_stride, geometry, image);
}

template <int Rank>
void store([[maybe_unused]] const Place& place, const void* values, ScalarType from, const void* bias,
           PositionRange range, const int64_t (&positions)[Rank], const PlaneLayout<Rank>& layout, void* output,
           ScalarType to, bool accumulate = false, int64_t value_stride = 0) {
#ifdef UNFOLDCONV_WITH_CUDA
  if (place.cuda)
    return cuda::store<Rank>(place.stream, values, from, bias, range, positions, layout, output, to, accumulate);
#endif
  cpu::store<Rank>(values, from, bias, range, positions, layout, output, to, accumulate,
                   value_stride ? value_stride : range.count);
}

}  // namespace unfoldconv
