// The weight gradient of depthwise_sums.inl.h.
#include "cpu/kernels/depthwise_sums.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// Terms of a weight gradient that are summed up by themselves first, as then are all of a box: errors grow with the
// number that are added one by one.
constexpr int64_t kTermsOfSum = 24;

// sums of taps [tap, tap + V) of every row of the kernel.
template <class T, int V, int Step>
void weight_sums_of_taps(const DepthwiseWindow& w, const T* image, const T* grad, T* sums, int64_t tap) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t row_pitch = w.size[2] * lanes, plane_pitch = w.size[1] * row_pitch;
  const int64_t grad_row = w.positions[2] * lanes, grad_plane = w.positions[1] * grad_row;
  const int64_t low = w.low[2] + tap * w.dilation[2];
  const Range columns = inside(low, w.stride[2], (V - 1) * w.dilation[2], w.valid_begin, w.valid_end, w.positions[2]);
  const int64_t count = greatest(0, columns.end - columns.begin);
  image += (low + columns.begin * w.stride[2]) * lanes;
  grad += columns.begin * lanes;
  for (int64_t kz = 0; kz < w.taps[0]; ++kz)
    for (int64_t ky = 0; ky < w.taps[1]; ++ky) {
      const int64_t plane = w.low[0] + kz * w.dilation[0], row = w.low[1] + ky * w.dilation[1];
      const Range planes = inside(plane, w.stride[0], 0, 0, w.size[0], w.positions[0]);
      const Range rows = inside(row, w.stride[1], 0, 0, w.size[1], w.positions[1]);
      T* const to = sums + ((kz * w.taps[1] + ky) * w.taps[2] + tap) * lanes;
      Vector<T> sum[V] = {}, of_image[V] = {};
      int64_t terms = 0;
      for (int64_t z = planes.begin; z < planes.end; ++z)
        for (int64_t y = rows.begin; y < rows.end; ++y)
          for (int64_t x = 0; x < count; x += kTermsOfSum) {
            const int64_t columns_of_sum = least(kTermsOfSum, count - x);
            multiply_add<T, V, Step>(sum, columns_of_sum, grad + z * grad_plane + y * grad_row + x * lanes, lanes,
                                     image + (plane + z * w.stride[0]) * plane_pitch +
                                         (row + y * w.stride[1]) * row_pitch + x * w.stride[2] * lanes,
                                     w.stride[2] * lanes, w.dilation[2] * lanes);
            terms += columns_of_sum;
            if (terms < kTermsOfSum) continue;
            terms = 0;
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) {
              of_image[v] += sum[v];
              sum[v] = Vector<T>{};
            }
          }
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) store(to + v * lanes, load(to + v * lanes) + (of_image[v] + sum[v]));
    }
}

template <class T, int Step, int... V>
void weight_sums_rows(const DepthwiseWindow& w, const T* image, const T* grad, T* sums,
                      std::integer_sequence<int, V...>) {
  using Taps = void (*)(const DepthwiseWindow&, const T*, const T*, T*, int64_t);
  static constexpr Taps taps[] = {weight_sums_of_taps<T, V + 1, Step>...};
  in_pieces(w.taps[2], sizeof...(V), [&](int64_t tap, int64_t size) { taps[size - 1](w, image, grad, sums, tap); });
}

template <class T>
void weight_sums_as(const DepthwiseWindow& w, const void* image, const void* grad, void* sums) {
  const auto i = static_cast<const T*>(image), g = static_cast<const T*>(grad);
  if (w.dilation[2] == 1) return weight_sums_rows<T, 1>(w, i, g, static_cast<T*>(sums), kSums);
  weight_sums_rows<T, 0>(w, i, g, static_cast<T*>(sums), kSumsAnyStep);
}

void depthwise_weight_sums(const DepthwiseWindow& w, ScalarType type, const void* image, const void* grad, void* sums) {
  if (type == ScalarType::Double) return weight_sums_as<double>(w, image, grad, sums);
  weight_sums_as<float>(w, image, grad, sums);
}

template <class T>
void add_as(int64_t vectors, const T* more, T* sums) {
  for (int64_t i = 0; i < vectors * kLanes<T>; ++i) sums[i] += more[i];
}

void depthwise_add(ScalarType type, int64_t vectors, const void* more, void* sums) {
  if (type == ScalarType::Double) return add_as(vectors, static_cast<const double*>(more), static_cast<double*>(sums));
  add_as(vectors, static_cast<const float*>(more), static_cast<float*>(sums));
}

}  // namespace

void add_depthwise_weight_sums(Kernels& kernels) {
  kernels.depthwise.weight_sums[0] = depthwise_weight_sums;
  kernels.depthwise.add = depthwise_add;
}

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
