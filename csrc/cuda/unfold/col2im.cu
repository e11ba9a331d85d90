// col2im on CUDA.
//
//   columns  [batch, channels * taps, positions] of any strides
//   image    [batch, channels, *sizes], contiguous
//
//   image[plane, i] = sum of columns[plane, tap, p] over every (tap, p) with p * stride - padding_low + tap * dilation
//   = i
//
// One thread owns one image element, or two of 2 bytes, and walks only over the taps that read it, in ascending order,
// so there are no atomics and the result is the same in every run. Each tap shifts what neighbours read, so that hardly
// any read could be a vector; those of a warp lie side by side.
#include <numeric>

#include "columns/columns.h"
#include "cuda/shared/index.cuh"
#include "cuda/shared/launch.cuh"

namespace unfoldconv::cuda {
namespace {

// --- kernel ----------------------------------------------------------------------------------------------------------

// One axis of the window. Of the taps that read an image element, each is tap_step further than the one before, and
// its position position_step lower.
template <class Index>
struct Axis {
  using Unsigned = std::make_unsigned_t<Index>;

  Divider<Index> stride;
  Index dilation, dilation_remainder, padding_low;  // dilation_remainder = dilation % stride
  Index taps, positions;
  Index tap_step, position_step;
  // In elements of columns: one tap, one position, one step of both. Unsigned, because beyond the ends of an axis,
  // where nothing is loaded, the sum may leave the range of Index.
  Unsigned tap_offset, position_offset, step_offset;
};

template <class Index>
struct Walk {
  Index tap, position;
};

// The first tap along one axis that reads image element `index`, or a tap beyond the last.
template <class Index>
__device__ __forceinline__ Walk<Index> first_tap(const Axis<Index>& axis, Index index) {
  const Index none = axis.taps;
  Index position = index + axis.padding_low;  // times the stride, still
  if (position < 0) return {none, 0};
  Index rest = position;
  Index remainder = axis.stride.divide(rest);
  Index tap = remainder;
  if (axis.dilation_remainder != 1) {
    // Each tap takes the dilation off the remainder, which has to come to 0 modulo the stride.
    for (tap = 0; remainder != 0 && tap < axis.taps; ++tap)
      remainder += remainder < axis.dilation_remainder ? axis.stride.divisor() - axis.dilation_remainder
                                                       : -axis.dilation_remainder;
  }
  if (tap >= axis.taps) return {none, 0};
  position -= tap * axis.dilation;
  if (position < 0) return {none, 0};
  return {tap, axis.stride.quotient(position)};
}

template <int Rank, class Index>
struct Parameters {
  Unraveler<Rank + 1, Index> elements;  // all but the batch, which is what they leave of a flat index
  Axis<Index> axis[Rank];
  Index batch_stride, channel_stride;  // of columns; a channel is all of its taps
  Index count;                         // of image elements
};

// Adds what the taps of the axes from `First` on contribute, row-major, to Width neighbours along the last axis. If
// they are more than one the stride of that axis is 1, and its walk begins with tap 0 at a position that may lie
// outside.
template <int First, int Rank, int Width, class Index, class T>
__device__ __forceinline__ void add_taps(const T* __restrict__ columns, const Axis<Index> (&axes)[Rank],
                                         const Walk<Index> (&start)[Rank], std::make_unsigned_t<Index> offset,
                                         Accumulator<T> (&sum)[Width]) {
  using Unsigned = std::make_unsigned_t<Index>;
  if constexpr (First == Rank) {
    sum[0] += convert<Accumulator<T>>(columns[static_cast<Index>(offset)]);
  } else if constexpr (First == Rank - 1 && Width > 1) {
    const Axis<Index>& axis = axes[First];
    Index position = start[First].position;
    offset += static_cast<Unsigned>(position) * axis.position_offset;
    for (Index tap = 0; tap < axis.taps; ++tap, position -= axis.position_step, offset += axis.step_offset) {
#pragma unroll
      for (int i = 0; i < Width; ++i)
        if (static_cast<Unsigned>(position + i) < static_cast<Unsigned>(axis.positions))
          sum[i] += convert<Accumulator<T>>(columns[static_cast<Index>(offset + i * axis.position_offset)]);
    }
  } else {
    const Axis<Index>& axis = axes[First];
    Index position = start[First].position;
    offset += static_cast<Unsigned>(start[First].tap) * axis.tap_offset +
              static_cast<Unsigned>(position) * axis.position_offset;
    // Unsigned, because a step is as long as the stride, which may be any number.
    for (Unsigned tap = start[First].tap; tap < static_cast<Unsigned>(axis.taps) && position >= 0;
         tap += axis.tap_step, position -= axis.position_step, offset += axis.step_offset)
      if (position < axis.positions) add_taps<First + 1, Rank, Width, Index, T>(columns, axes, start, offset, sum);
  }
}

template <int Rank, class Index, class T, int Width>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Index>)
    sum_columns(const T* __restrict__ columns, T* __restrict__ image,
                const __grid_constant__ Parameters<Rank, Index> parameters) {
  struct alignas(Width * sizeof(T)) Group {
    T value[Width];
  };

  for_each_item(parameters.count / Width, [&](Index item) {
    Index rest = item * Width;
    Walk<Index> start[Rank];
#pragma unroll
    for (int axis = Rank - 1; axis >= 0; --axis) {
      const Index index = parameters.elements.size[axis + 1].divide(rest);
      start[axis] = axis == Rank - 1 && Width > 1 ? Walk<Index>{0, index + parameters.axis[axis].padding_low}
                                                  : first_tap(parameters.axis[axis], index);
    }
    const Index channel = parameters.elements.size[0].divide(rest);
    const Index plane_offset = rest * parameters.batch_stride + channel * parameters.channel_stride;
    Accumulator<T> sum[Width] = {};
    add_taps<0, Rank, Width, Index, T>(columns + plane_offset, parameters.axis, start, 0, sum);
    Group group;
#pragma unroll
    for (int i = 0; i < Width; ++i) group.value[i] = convert<T>(sum[i]);
    reinterpret_cast<Group*>(image)[item] = group;
  });
}

// --- launcher --------------------------------------------------------------------------------------------------------

template <int Rank, class Index>
Parameters<Rank, Index> make_parameters(int64_t batch, int64_t channels, const int64_t (&column_stride)[3],
                                        const Geometry<Rank>& geometry) {
  using Unsigned = std::make_unsigned_t<Index>;
  Parameters<Rank, Index> result;
  result.elements.size[0] = Divider<Index>(channels);
  result.batch_stride = column_stride[0];
  result.channel_stride = geometry.tap_numel() * column_stride[1];
  result.count = batch * channels * geometry.image_numel();
  Unsigned tap_offset = column_stride[1], position_offset = column_stride[2];
  for (int i = Rank - 1; i >= 0; --i) {
    result.elements.size[i + 1] = Divider<Index>(geometry.image[i]);
    const int64_t common = std::gcd(geometry.stride[i], geometry.dilation[i]);
    Axis<Index>& axis = result.axis[i];
    axis.stride = Divider<Index>(geometry.stride[i]);
    axis.dilation = geometry.dilation[i];
    axis.dilation_remainder = geometry.dilation[i] % geometry.stride[i];
    axis.padding_low = geometry.padding_low[i];
    axis.taps = geometry.kernel[i];
    axis.positions = geometry.positions[i];
    axis.tap_step = geometry.stride[i] / common;
    axis.position_step = geometry.dilation[i] / common;
    axis.tap_offset = tap_offset;
    axis.position_offset = position_offset;
    axis.step_offset =
        static_cast<Unsigned>(axis.tap_step) * tap_offset - static_cast<Unsigned>(axis.position_step) * position_offset;
    tap_offset *= static_cast<Unsigned>(geometry.kernel[i]);
    position_offset *= static_cast<Unsigned>(geometry.positions[i]);
  }
  return result;
}

// The largest number that the index maths above meets.
template <int Rank>
double largest_index(int64_t batch, int64_t channels, const int64_t (&column_stride)[3],
                     const Geometry<Rank>& geometry) {
  PlaneLayout<1> rows = {{1, batch, channels * geometry.tap_numel()}, {0, column_stride[0], column_stride[1]}, {}};
  rows.axis_stride[0] = column_stride[2];
  const int64_t positions[1] = {geometry.position_numel()};
  double result =
      std::max(static_cast<double>(batch) * channels * geometry.image_numel(), largest_offset(rows, positions));
  result =
      std::max(result, static_cast<double>(geometry.tap_numel()) * std::fabs(static_cast<double>(column_stride[1])));
  for (int axis = 0; axis < Rank; ++axis)
    result = std::max(result, static_cast<double>(geometry.image[axis]) + geometry.stride[axis] +
                                  std::fabs(static_cast<double>(geometry.padding_low[axis])) +
                                  static_cast<double>(geometry.kernel[axis]) * geometry.dilation[axis]);
  return result;
}

}  // namespace

template <int Rank>
void col2im(void* stream, const void* columns, ScalarType dtype, int64_t batch, int64_t channels,
            const int64_t (&column_stride)[3], const Geometry<Rank>& geometry, void* image) {
  dispatch_sum(dtype, [&](auto type) {
    with_index(largest_index(batch, channels, column_stride, geometry), [&](auto index_type) {
      using T = typename decltype(type)::type;
      using Index = typename decltype(index_type)::type;
      constexpr int rank = kKernelRank<Rank, Index, std::is_same_v<Accumulator<T>, float>>;
      const auto parameters =
          make_parameters<rank, Index>(batch, channels, column_stride, with_leading_axes<rank>(geometry));
      const auto run = [&]<int Width>(std::integral_constant<int, Width>) {
        launch(sum_columns<rank, Index, T, Width>, Grid::of_items(parameters.count / Width), stream,
               static_cast<const T*>(columns), static_cast<T*>(image), parameters);
      };
      if constexpr (sizeof(Index) == 4 && sizeof(T) == 2) {
        const bool pairs = geometry.image[Rank - 1] % 2 == 0 && reinterpret_cast<uintptr_t>(image) % 4 == 0;
        if (pairs && geometry.stride[Rank - 1] == 1) return run(std::integral_constant<int, 2>{});
      }
      run(std::integral_constant<int, 1>{});
    });
  });
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                 \
  template void col2im<RANK>(void*, const void*, ScalarType, int64_t, int64_t, const int64_t (&)[3], \
                             const Geometry<RANK>&, void*);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cuda
