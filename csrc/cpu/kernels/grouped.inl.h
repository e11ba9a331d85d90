// The sums of the depthwise engine for groups of 2, 4 or 8 channels: a vector holds the same position of neighbouring
// channels, whole groups of them, and meets each channel of every group as a vector that has it in all lanes of the
// group ("spread"). So no weight between two groups is multiplied, not even a zero.
//
//   correlate    a spread vector is shared by all taps of a kernel row that meet it at one of the V positions
//   weight_sums  and by all taps of a kernel row
#include "cpu/kernels/depthwise_in_place.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// Calls f(std::integral_constant<int, i>{}) for i < Count, in order.
template <class F, int... I>
UNFOLDCONV_INLINE void for_each_constant(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int Count, class F>
UNFOLDCONV_INLINE void for_each_constant(const F& f) {
  for_each_constant(f, std::make_integer_sequence<int, Count>{});
}

// Every lane has the element at `from` that is channel `Channel` of its group of `Channels`.
template <int Channels, int Channel, class T, int... I>
UNFOLDCONV_INLINE Vector<T> spread(const T* from, std::integer_sequence<int, I...>) {
  using S = Shuffle<T, kLanes<T>>;
  const Vector<T> all = load(from);
  return S::shuffled(all, all, typename S::Indices{I / Channels * Channels + Channel...});
}
template <int Channels, int Channel, class T>
UNFOLDCONV_INLINE Vector<T> spread(const T* from) {
  // Read so, it takes no shuffle.
  if constexpr (Channels == kLanes<T>) return broadcast(from[Channel]);
  return spread<Channels, Channel>(from, std::make_integer_sequence<int, kLanes<T>>{});
}

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

// Taps of a kernel row, and channels of a group, whose sums are in registers together.
constexpr int kMostTaps = 3, kMostChannels = 4;
// Rows that are summed up by themselves first: errors grow with the number of terms that are added one by one.
constexpr int64_t kRowsOfSum = 2;

// sum[v, channel] += grad[p] * spread(image[p * stride + v * dilation], First + channel) over p < count. Shared is
// whether stride and dilation are 1; then neighbouring positions share the spread vectors.
template <class T, int Channels, int First, int Number, int V, bool Shared>
UNFOLDCONV_INLINE void add_row_of_groups(Vector<T> (&sum)[V][Number], int64_t count, const T* grad, const T* image,
                                         int64_t stride, int64_t dilation) {
  constexpr int64_t lanes = kLanes<T>;
  if constexpr (Shared) {
    // Element i of the row meets position i - v under tap v.
    const auto element = [&](int64_t i, auto&& meets) UNFOLDCONV_INLINE_LAMBDA {
      for_each_constant<Number>([&](auto channel) UNFOLDCONV_INLINE_LAMBDA {
        const Vector<T> factor = spread<Channels, First + channel>(image + i * lanes);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          if (meets(i - v)) sum[v][channel] += factor * load(grad + (i - v) * lanes);
      });
    };
    const auto known = [](int64_t) UNFOLDCONV_INLINE_LAMBDA { return true; };
    const auto at_ends = [&](int64_t p) UNFOLDCONV_INLINE_LAMBDA { return p >= 0 && p < count; };
    const int64_t whole = greatest(V - 1, count);
    for (int64_t i = 0; i < V - 1; ++i) element(i, at_ends);
    for (int64_t i = V - 1; i < whole; ++i) element(i, known);
    for (int64_t i = whole; i < count + V - 1; ++i) element(i, at_ends);
  } else {
    for (int64_t p = 0; p < count; ++p) {
      const Vector<T> factor = load(grad + p * lanes);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)
        for_each_constant<Number>([&](auto channel) UNFOLDCONV_INLINE_LAMBDA {
          sum[v][channel] += factor * spread<Channels, First + channel>(image + (p * stride + v * dilation) * lanes);
        });
    }
  }
}

// sums[channel, taps] of channels First.. of every group, for taps [tap, tap + V) of every row of the kernel.
template <class T, int Channels, int First, int V, bool Shared>
void weight_sums_of_groups(const DepthwiseWindow& w, const T* image, const T* grad, T* sums, int64_t tap) {
  constexpr int64_t lanes = kLanes<T>;
  constexpr int number = least(Channels, kMostChannels);
  const int64_t row_pitch = w.size[2] * lanes, plane_pitch = w.size[1] * row_pitch;
  const int64_t grad_row = w.positions[2] * lanes, grad_plane = w.positions[1] * grad_row;
  image += (w.low[2] + tap * w.dilation[2]) * lanes;
  for (int64_t kz = 0; kz < w.taps[0]; ++kz)
    for (int64_t ky = 0; ky < w.taps[1]; ++ky) {
      const int64_t plane = w.low[0] + kz * w.dilation[0], row = w.low[1] + ky * w.dilation[1];
      const Range planes = inside(plane, w.stride[0], 0, 0, w.size[0], w.positions[0]);
      const Range rows = inside(row, w.stride[1], 0, 0, w.size[1], w.positions[1]);
      T* to = sums + ((kz * w.taps[1] + ky) * w.taps[2] + tap) * lanes;
      const int64_t taps = w.taps[0] * w.taps[1] * w.taps[2] * lanes;
      for (int64_t z = planes.begin; z < planes.end; ++z)
        for (int64_t first = rows.begin; first < rows.end; first += kRowsOfSum) {
          Vector<T> sum[V][number] = {};
          for (int64_t y = first; y < least(first + kRowsOfSum, rows.end); ++y)
            add_row_of_groups<T, Channels, First, number, V, Shared>(
                sum, w.positions[2], grad + z * grad_plane + y * grad_row,
                image + (plane + z * w.stride[0]) * plane_pitch + (row + y * w.stride[1]) * row_pitch, w.stride[2],
                w.dilation[2]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v)
#pragma GCC unroll 4
            for (int channel = 0; channel < number; ++channel) {
              T* const here = to + (First + channel) * taps + v * lanes;
              store(here, load(here) + sum[v][channel]);
            }
        }
    }
}

template <class T, int Channels, int First, bool Shared, int... V>
void weight_sums_group_rows(const DepthwiseWindow& w, const T* image, const T* grad, T* sums,
                            std::integer_sequence<int, V...>) {
  using Sums = void (*)(const DepthwiseWindow&, const T*, const T*, T*, int64_t);
  static constexpr Sums of_taps[] = {weight_sums_of_groups<T, Channels, First, V + 1, Shared>...};
  in_pieces(w.taps[2], sizeof...(V), [&](int64_t tap, int64_t size) { of_taps[size - 1](w, image, grad, sums, tap); });
}

template <class T, int Channels>
void weight_sums_groups_as(const DepthwiseWindow& w, const void* image, const void* grad, void* sums) {
  if constexpr (kLanes<T> % Channels == 0) {
    constexpr auto taps = std::make_integer_sequence<int, kMostTaps>{};
    const auto i = static_cast<const T*>(image), g = static_cast<const T*>(grad);
    const auto to = static_cast<T*>(sums);
    const bool shared = w.stride[2] == 1 && w.dilation[2] == 1;
    for_each_constant<(Channels + kMostChannels - 1) / kMostChannels>([&](auto part) {
      constexpr int first = part * kMostChannels;
      if (shared)
        weight_sums_group_rows<T, Channels, first, true>(w, i, g, to, taps);
      else
        weight_sums_group_rows<T, Channels, first, false>(w, i, g, to, taps);
    });
  }
}

template <int Channels>
void grouped_weight_sums(const DepthwiseWindow& w, ScalarType type, const void* image, const void* grad, void* sums) {
  if (type == ScalarType::Double) return weight_sums_groups_as<double, Channels>(w, image, grad, sums);
  weight_sums_groups_as<float, Channels>(w, image, grad, sums);
}

template <int VectorBytes>
DepthwiseKernels depthwise_kernels_for() {
  DepthwiseKernels kernels = {
      kVectorBytes, depthwise_gather, depthwise_scatter, {depthwise_correlate}, {depthwise_weight_sums},
      nullptr,      nullptr,          depthwise_add};
  // Vectors of 16 bytes are for processors that are slow anyway: there the general kernels are enough.
  if constexpr (VectorBytes > 16) {
    kernels.correlate[1] = grouped_correlate<2>, kernels.weight_sums[1] = grouped_weight_sums<2>;
    kernels.correlate[2] = grouped_correlate<4>, kernels.weight_sums[2] = grouped_weight_sums<4>;
    kernels.correlate[3] = grouped_correlate<8>, kernels.weight_sums[3] = grouped_weight_sums<8>;
    kernels.correlate_in_place = depthwise_correlate_in_place;
    kernels.weight_sums_in_place = depthwise_weight_sums_in_place;
  }
  return kernels;
}

DepthwiseKernels depthwise_kernels() { return depthwise_kernels_for<kVectorBytes>(); }

}  // namespace
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
