// The weight gradient of grouped_vectors.inl.h.
#include "cpu/kernels/grouped_vectors.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

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

}  // namespace

void add_grouped_weight_sums(Kernels& kernels) {
  kernels.depthwise.weight_sums[1] = grouped_weight_sums<2>;
  kernels.depthwise.weight_sums[2] = grouped_weight_sums<4>;
  kernels.depthwise.weight_sums[3] = grouped_weight_sums<8>;
}

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
