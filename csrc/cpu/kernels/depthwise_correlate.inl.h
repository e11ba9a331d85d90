// The correlation of depthwise_sums.inl.h.
#include "cpu/kernels/depthwise_sums.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

constexpr int kLeastSumsOfKnownTaps = 7;

// Columns [x, x + V) of every row, with a window of `Taps` columns if that is not 0.
template <class T, int V, int Step, int Taps>
void correlate_columns(const DepthwiseWindow& w, const DepthwiseOutput& to, const T* image, const T* weight,
                       const T* bias, void* output, int64_t x) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t row_pitch = w.size[2] * lanes, plane_pitch = w.size[1] * row_pitch;
  const int64_t low = w.low[2] + x * w.stride[2];
  const Range taps = inside(low, w.dilation[2], (V - 1) * w.stride[2], w.valid_begin, w.valid_end, w.taps[2]);
  // The products of a row: `count` of them for each sum.
  int64_t count = greatest(0, taps.end - taps.begin);
  const T *a = weight + taps.begin * to.weight_stride[2], *b = image + (low + taps.begin * w.dilation[2]) * lanes;
  int64_t a_step = to.weight_stride[2], b_step = w.dilation[2] * lanes, distance = w.stride[2] * lanes;
  int64_t column = x * to.stride[2], column_step = to.stride[2];
  bool image_first = false;
  if constexpr (Step == 1 && Taps == 0) {
    const int64_t first_tap = w.valid_begin - low - (V - 1), last_tap = w.valid_end - 1 - low;
    image_first = w.dilation[2] == 1 && w.valid_end - w.valid_begin < count && first_tap >= 0 && last_tap < w.taps[2] &&
                  (to.weight_stride[2] == lanes || to.weight_stride[2] == -lanes);
    if (image_first) {
      // Element i of the row meets tap i - low - v.
      count = w.valid_end - w.valid_begin;
      a = image + w.valid_begin * lanes;
      a_step = lanes;
      b_step = to.weight_stride[2];
      b = weight + (w.valid_begin - low) * b_step;
      if (b_step > 0) {  // the last position first, so that the taps go up from sum to sum
        b -= (V - 1) * b_step;
        column += (V - 1) * column_step;
        column_step = -column_step;
      }
    }
  }
  const int64_t a_plane = image_first ? plane_pitch : to.weight_stride[0];
  const int64_t a_row = image_first ? row_pitch : to.weight_stride[1];
  const int64_t b_plane = image_first ? to.weight_stride[0] : plane_pitch;
  const int64_t b_row = image_first ? to.weight_stride[1] : row_pitch;
  const int64_t image_plane_step = w.dilation[0], image_row_step = w.dilation[1];
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
        for (int64_t ky = rows.begin; ky < rows.end; ++ky) {
          const int64_t iz = plane + kz * image_plane_step, iy = row + ky * image_row_step;
          const T* row_a = a + (image_first ? iz : kz) * a_plane + (image_first ? iy : ky) * a_row;
          const T* row_b = b + (image_first ? kz : iz) * b_plane + (image_first ? ky : iy) * b_row;
          multiply_add<T, V, Step, Taps>(sum, count, row_a, a_step, row_b, b_step, distance);
        }
      const int64_t element = z * to.stride[0] + y * to.stride[1] + column;
      // The next row of the output is asked for now: where channels lie side by side, all its elements are lines apart.
      const char* next = static_cast<const char*>(output) + (element + to.stride[1]) * to.bytes;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) __builtin_prefetch(next + v * column_step * to.bytes, 1);
      put<T>(to, output, element, column_step, sum);
    }
  }
}

template <class T>
using Columns = void (*)(const DepthwiseWindow&, const DepthwiseOutput&, const T*, const T*, const T*, void*, int64_t);

template <class T, int Step, int Taps, int V>
constexpr Columns<T> columns_of() {
  // Narrow pieces are rare, and vectors of 16 bytes are for processors that are slow anyway: there one version for
  // every window is enough.
  constexpr int window = V >= kLeastSumsOfKnownTaps && kVectorBytes > 16 ? Taps : 0;
  return correlate_columns<T, V, Step, window>;
}

template <class T, int Step, int Taps, int... V>
void correlate_rows(const DepthwiseWindow& w, const DepthwiseOutput& to, const T* image, const T* weight, const T* bias,
                    void* output, std::integer_sequence<int, V...>) {
  static constexpr Columns<T> columns[] = {columns_of<T, Step, Taps, V + 1>()...};
  in_pieces(w.positions[2], sizeof...(V),
            [&](int64_t x, int64_t size) { columns[size - 1](w, to, image, weight, bias, output, x); });
}

template <class T>
void correlate_as(const DepthwiseWindow& w, const DepthwiseOutput& to, const void* image, const void* weight,
                  const void* bias, void* output) {
  const auto i = static_cast<const T*>(image), k = static_cast<const T*>(weight), b = static_cast<const T*>(bias);
  const int64_t taps = w.dilation[2] == 1 ? w.taps[2] : 0;
  if (w.stride[2] == 1) {
    if (taps == 3) return correlate_rows<T, 1, 3>(w, to, i, k, b, output, kSums);
    if (taps == 5) return correlate_rows<T, 1, 5>(w, to, i, k, b, output, kSums);
    if (taps == 7) return correlate_rows<T, 1, 7>(w, to, i, k, b, output, kSums);
    return correlate_rows<T, 1, 0>(w, to, i, k, b, output, kSums);
  }
  if (w.stride[2] == 2) {
    if (taps == 3) return correlate_rows<T, 2, 3>(w, to, i, k, b, output, kSums);
    return correlate_rows<T, 2, 0>(w, to, i, k, b, output, kSums);
  }
  correlate_rows<T, 0, 0>(w, to, i, k, b, output, kSumsAnyStep);
}

void depthwise_correlate(const DepthwiseWindow& w, const DepthwiseOutput& to, const void* image, const void* weight,
                         const void* bias, void* output) {
  if (to.dtype == ScalarType::Double) return correlate_as<double>(w, to, image, weight, bias, output);
  correlate_as<float>(w, to, image, weight, bias, output);
}

}  // namespace

void add_depthwise_correlate(Kernels& kernels) { kernels.depthwise.correlate[0] = depthwise_correlate; }

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
