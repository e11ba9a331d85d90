// The sums of the depthwise engine: a vector holds the same position of neighbouring channels.
//
// All of them are sum[v] += a[j] * b[j + v], v < V, kept in registers: an element of `a` is loaded once for V products.
//   correlate    v counts positions of a row; a is the weight and b the image, or the other way round where the kernel
//                reaches beyond the image at both ends, so that no product with the padding is made
//   weight_sums  v counts taps of a kernel row; a is grad_output, b the image
#include "cpu/kernels/depthwise_copy.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// Sums that fit the registers beside `a`. Where the distance of neighbours is not known to the compiler, their
// addresses take registers too.
constexpr int kMostSums = 14;
constexpr int kMostSumsAnyStep = 4;
constexpr int kLeastSumsOfKnownTaps = 7;
// Terms of a weight gradient that are summed up by themselves first, as then are all of a box: errors grow with the
// number that are added one by one.
constexpr int64_t kTermsOfSum = 24;

UNFOLDCONV_INLINE constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
UNFOLDCONV_INLINE constexpr int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }
// Rounded up, for b > 0. A division takes longer than a row of a small kernel, and is rarely needed.
UNFOLDCONV_INLINE int64_t quotient_up(int64_t a, int64_t b) {
  if (b == 1) return a;
  return a > 0 ? (a - 1) / b + 1 : -(-a / b);
}

// The i in [0, count) with 0 <= first + i * step + [0, width] < size for some element of the interval.
struct Range {
  int64_t begin, end;
};
UNFOLDCONV_INLINE Range inside(int64_t first, int64_t step, int64_t width, int64_t begin, int64_t end, int64_t count) {
  return {greatest(0, quotient_up(begin - first - width, step)), least(count, quotient_up(end - first, step))};
}

// sum[v] += a[j * a_step] * b[j * b_step + v * distance] for j < count; distance is Step vectors, or any if Step is 0.
// Count is count, or 0 for any; then b_step is one vector.
template <class T, int V, int Step, int Count = 0>
UNFOLDCONV_INLINE void multiply_add(Vector<T> (&sum)[V], int64_t count, const T* a, int64_t a_step, const T* b,
                                    int64_t b_step, int64_t any_distance) {
  const int64_t distance = Step ? Step * kLanes<T> : any_distance;
  if constexpr (Count > 0) {
#pragma GCC unroll 16
    for (int j = 0; j < Count; ++j) {
      const Vector<T> factor = load(a + j * a_step);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[v] += factor * load(b + (j + v * Step) * kLanes<T>);
    }
    return;
  }
  for (int64_t j = 0; j < count; ++j) {
    const Vector<T> factor = load(a);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[v] += factor * load(b + v * distance);
    a += a_step;
    b += b_step;
  }
}

// Sums to elements `step` apart, in another dtype than theirs or fewer lanes than a vector's. Not inlined: there are
// many callers, and what it does is long.
template <class T>
__attribute__((noinline)) void put_sums(const DepthwiseOutput& to, void* output, int64_t element, int64_t step,
                                        const T* sums, int count) {
  for (int v = 0; v < count; ++v, element += step) {
    const Vector<T> value = load(sums + v * kLanes<T>);
    if constexpr (sizeof(T) == 4) {
      if (to.dtype == ScalarType::BFloat16) {
        store_rounded(static_cast<BFloat16*>(output) + element, value, to.lanes);
        continue;
      }
      if (to.dtype == ScalarType::Half) {
        store_rounded(static_cast<Half*>(output) + element, value, to.lanes);
        continue;
      }
    }
    store_rounded(static_cast<T*>(output) + element, value, to.lanes);
  }
}

template <class T, int V>
UNFOLDCONV_INLINE void put(const DepthwiseOutput& to, void* output, int64_t element, int64_t step,
                           const Vector<T> (&sum)[V]) {
  if (to.lanes == kLanes<T> && to.bytes == sizeof(T)) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(static_cast<T*>(output) + element + v * step, sum[v]);
  } else {
    alignas(kVectorBytes) T sums[V * kLanes<T>];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(sums + v * kLanes<T>, sum[v]);
    put_sums<T>(to, output, element, step, sums, V);
  }
}

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

// Cuts [0, count) into pieces of nearly one size, at most `most`: f(first, size).
template <class F>
UNFOLDCONV_INLINE void in_pieces(int64_t count, int64_t most, const F& f) {
  const int64_t pieces = quotient_up(count, most);
  for (int64_t piece = 0, first = 0; piece < pieces; ++piece) {
    const int64_t size = count / pieces + (piece < count % pieces);
    f(first, size);
    first += size;
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

template <class T, int Step, int... V>
void weight_sums_rows(const DepthwiseWindow& w, const T* image, const T* grad, T* sums,
                      std::integer_sequence<int, V...>) {
  using Taps = void (*)(const DepthwiseWindow&, const T*, const T*, T*, int64_t);
  static constexpr Taps taps[] = {weight_sums_of_taps<T, V + 1, Step>...};
  in_pieces(w.taps[2], sizeof...(V), [&](int64_t tap, int64_t size) { taps[size - 1](w, image, grad, sums, tap); });
}

constexpr auto kSums = std::make_integer_sequence<int, kMostSums>{};
constexpr auto kSumsAnyStep = std::make_integer_sequence<int, kMostSumsAnyStep>{};

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
}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
