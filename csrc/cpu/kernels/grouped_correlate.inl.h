// The correlation of grouped_vectors.inl.h.
#include "cpu/kernels/grouped_vectors.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// Positions that are summed side by side; a row takes the widest that fit, and the last ones overlap.
constexpr int kWide = kVectorBytes == 64 ? 14 : 7;  // as the registers allow
constexpr int kMedium = 7, kNarrow = 4;

// sum[v] += weight[k, channel, lanes] * spread(row[v * stride + k * dilation], channel) over a kernel row, channel by
// channel. Step is the stride, or 0 for any; Taps the number of taps side by side, or 0 for any and any dilation.
template <class T, int Channels, int V, int Step, int Taps>
UNFOLDCONV_INLINE void multiply_add_groups(Vector<T> (&sum)[V], const DepthwiseWindow& w, const T* row, const T* weight,
                                           int64_t tap_stride) {
  constexpr int lanes = kLanes<T>;
  for_each_constant<Channels>([&](auto channel) UNFOLDCONV_INLINE_LAMBDA {
    const T* factors = weight + channel * lanes;
    if constexpr (Taps > 0) {
      Vector<T> factor[Taps];
#pragma GCC unroll 8
      for (int k = 0; k < Taps; ++k) factor[k] = load(factors + k * tap_stride);
#pragma GCC unroll 32
      for (int i = 0; i < (V - 1) * Step + Taps; ++i) {
        const Vector<T> element = spread<Channels, channel>(row + i * lanes);
#pragma GCC unroll 8
        for (int k = 0; k < Taps; ++k)
          if (i >= k && (i - k) % Step == 0 && (i - k) / Step < V) sum[(i - k) / Step] += factor[k] * element;
      }
    } else {
      const int64_t distance = (Step ? Step : w.stride[2]) * lanes;
      const T* from = row;
      for (int64_t k = 0; k < w.taps[2]; ++k) {
        const Vector<T> factor = load(factors);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[v] += factor * spread<Channels, channel>(from + v * distance);
        factors += tap_stride;
        from += w.dilation[2] * lanes;
      }
    }
  });
}

// Columns [x, x + V) of every row.
template <class T, int Channels, int V, int Step, int Taps>
void correlate_groups(const DepthwiseWindow& w, const DepthwiseOutput& to, const T* image, const T* weight,
                      const T* bias, void* output, int64_t x) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t row_pitch = w.size[2] * lanes, plane_pitch = w.size[1] * row_pitch;
  image += (w.low[2] + x * w.stride[2]) * lanes;
  const Vector<T> start = bias ? load(bias) : Vector<T>{};
  for (int64_t z = 0; z < w.positions[0]; ++z) {
    const int64_t plane = w.low[0] + z * w.stride[0];
    const Range planes = inside(plane, w.dilation[0], 0, 0, w.size[0], w.taps[0]);
    for (int64_t y = 0; y < w.positions[1]; ++y) {
      const int64_t row = w.low[1] + y * w.stride[1];
      const Range rows = inside(row, w.dilation[1], 0, 0, w.size[1], w.taps[1]);
      Vector<T> sum[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[v] = start;
      for (int64_t kz = planes.begin; kz < planes.end; ++kz)
        for (int64_t ky = rows.begin; ky < rows.end; ++ky)
          multiply_add_groups<T, Channels, V, Step, Taps>(
              sum, w, image + (plane + kz * w.dilation[0]) * plane_pitch + (row + ky * w.dilation[1]) * row_pitch,
              weight + kz * to.weight_stride[0] + ky * to.weight_stride[1], to.weight_stride[2]);
      const int64_t element = z * to.stride[0] + y * to.stride[1] + x * to.stride[2];
      put<T>(to, output, element, to.stride[2], sum);
    }
  }
}

// f(V as a constant, x) for columns [x, x + V) until all are done. The last ones overlap the ones before, which are
// computed and written again, to the same bits.
template <int Most, class F>
UNFOLDCONV_INLINE void for_each_columns(int64_t columns, const F& f) {
  int64_t x = 0;
  const auto as = [&](auto width) UNFOLDCONV_INLINE_LAMBDA {
    f(width, least(x, columns - width));
    x += width;
  };
  while (x < columns) {
    const int64_t left = columns - x;
    if (Most >= kWide && columns >= kWide && left > kMedium) {
      as(std::integral_constant<int, least(Most, kWide)>{});
    } else if (Most >= kMedium && columns >= kMedium && left > kNarrow) {
      as(std::integral_constant<int, least(Most, kMedium)>{});
    } else if (columns >= kNarrow && left > 1) {
      as(std::integral_constant<int, kNarrow>{});
    } else {
      as(std::integral_constant<int, 1>{});
    }
  }
}

template <class T, int Channels, int Step, int Taps>
void correlate_group_rows(const DepthwiseWindow& w, const DepthwiseOutput& to, const T* image, const T* weight,
                          const T* bias, void* output) {
  // Where the distance of neighbours is not known to the compiler, their addresses take registers too.
  for_each_columns<Step ? kWide : kNarrow>(w.positions[2], [&](auto width, int64_t x) UNFOLDCONV_INLINE_LAMBDA {
    correlate_groups<T, Channels, width, Step, Taps>(w, to, image, weight, bias, output, x);
  });
}

template <class T, int Channels>
void correlate_groups_as(const DepthwiseWindow& w, const DepthwiseOutput& to, const void* image, const void* weight,
                         const void* bias, void* output) {
  if constexpr (kLanes<T> % Channels == 0) {
    const auto i = static_cast<const T*>(image), k = static_cast<const T*>(weight), b = static_cast<const T*>(bias);
    const bool three = w.taps[2] == 3 && w.dilation[2] == 1;
    if (w.stride[2] == 1 && three) return correlate_group_rows<T, Channels, 1, 3>(w, to, i, k, b, output);
    if (w.stride[2] == 2 && three) return correlate_group_rows<T, Channels, 2, 3>(w, to, i, k, b, output);
    if (w.stride[2] == 1) return correlate_group_rows<T, Channels, 1, 0>(w, to, i, k, b, output);
    correlate_group_rows<T, Channels, 0, 0>(w, to, i, k, b, output);
  }
}

template <int Channels>
void grouped_correlate(const DepthwiseWindow& w, const DepthwiseOutput& to, const void* image, const void* weight,
                       const void* bias, void* output) {
  if (to.dtype == ScalarType::Double) return correlate_groups_as<double, Channels>(w, to, image, weight, bias, output);
  correlate_groups_as<float, Channels>(w, to, image, weight, bias, output);
}

}  // namespace

void add_grouped_correlate(Kernels& kernels) {
  kernels.depthwise.correlate[1] = grouped_correlate<2>;
  kernels.depthwise.correlate[2] = grouped_correlate<4>;
  kernels.depthwise.correlate[3] = grouped_correlate<8>;
}

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
