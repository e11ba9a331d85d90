// The sums of the depthwise engine for small kernels over tensors with the channels innermost, read where they lie.
//
// A column of the image is loaded once for all the positions or taps of a row that it meets. Columns outside the image
// are skipped, not multiplied: a piece of positions takes them as an interval [begin, end) of the columns it would
// read.
#include "cpu/kernels/depthwise_window.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// V positions of a row, and the columns of the image that they read.
struct RowPiece {
  int64_t x, first;  // the first position, the first column
  int begin, end;    // columns of the piece that exist
  int positions;     // that do
};
template <int V, int Stride, int Taps>
UNFOLDCONV_INLINE RowPiece piece_at(const DepthwiseWindow& w, int64_t x) {
  const int64_t first = w.low[2] + x * Stride;
  constexpr int64_t columns = (V - 1) * Stride + Taps;
  const int64_t begin = least(greatest(0, -first), columns), end = greatest(begin, least(columns, w.size[2] - first));
  return {x, first, static_cast<int>(begin), static_cast<int>(end), static_cast<int>(least(V, w.positions[2] - x))};
}

// Calls f(value of column i, i) for the columns of a piece; Whole tells that all of them and all the channels are
// there.
template <bool Whole, int Columns, class E, class F>
UNFOLDCONV_INLINE void for_each_column(const RowPiece& piece, const E* row, int64_t step, int64_t channels,
                                       const F& f) {
#pragma GCC unroll 32
  for (int i = 0; i < Columns; ++i, row += step) {
    if constexpr (Whole)
      f(load_widened(row), i);
    else if (i >= piece.begin && i < piece.end)
      f(load_widened(row, channels), i);
  }
}

// Asks for V vectors. Channels that lie side by side are read in short pieces, which the processor does not recognise
// as streams, so every row asks for what the next one reads or writes first.
template <int V, int Write, class E>
UNFOLDCONV_INLINE void ask_for(const E* from, int64_t step) {
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) __builtin_prefetch(from + v * step, Write);
}

// Calls f(V, Stride, Taps as constants) for the pieces of a row.
template <int Value>
struct Constant {
  static constexpr int value = Value;
};
constexpr int kPieceSize = 7;  // divides the widths of most networks, 7, 14, 28, ..., or nearly does

template <class F>
UNFOLDCONV_INLINE void with_constants(const DepthwiseWindow& w, const F& f) {
  if (w.stride[2] == 2) return f(Constant<kPieceSize>{}, Constant<2>{}, Constant<3>{});
  if (w.taps[2] == 3) return f(Constant<kPieceSize>{}, Constant<1>{}, Constant<3>{});
  f(Constant<kPieceSize>{}, Constant<1>{}, Constant<7>{});
}

template <class E, int V, int Stride, int Taps, bool Whole>
void correlate_piece(const DepthwiseInPlace& p, const RowPiece& piece, Range planes, Range rows, int64_t plane,
                     int64_t row, const E* image, const Accumulator<E>* weight, Vector<Accumulator<E>> start, E* output,
                     int64_t channels) {
  using T = Accumulator<E>;
  const DepthwiseWindow& w = p.window;
  Vector<T> sum[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sum[v] = start;
  for (int64_t kz = planes.begin; kz < planes.end; ++kz)
    for (int64_t ky = rows.begin; ky < rows.end; ++ky) {
      const E* const from = image + (plane + kz * w.dilation[0]) * p.image_stride[0] +
                            (row + ky * w.dilation[1]) * p.image_stride[1] + piece.first * p.image_stride[2];
      const T* const factors = weight + kz * p.to.weight_stride[0] + ky * p.to.weight_stride[1];
      Vector<T> factor[Taps];
#pragma GCC unroll 8
      for (int k = 0; k < Taps; ++k) factor[k] = load(factors + k * p.to.weight_stride[2]);
      for_each_column<Whole, (V - 1) * Stride + Taps>(piece, from, p.image_stride[2], channels,
                                                      [&](Vector<T> value, int i) UNFOLDCONV_INLINE_LAMBDA {
#pragma GCC unroll 8
                                                        for (int k = 0; k < Taps; ++k)
                                                          if (i >= k && (i - k) % Stride == 0 && (i - k) / Stride < V)
                                                            sum[(i - k) / Stride] += factor[k] * value;
                                                      });
    }
  const int64_t step = p.to.stride[2];
  output += piece.x * step;
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    if constexpr (Whole)
      store_rounded(output + v * step, sum[v]);
    else if (v < piece.positions)
      store_rounded(output + v * step, sum[v], channels);
  }
}

template <class E, int V, int Stride, int Taps>
void correlate_in_place_rows(const DepthwiseInPlace& p, const E* image, const Accumulator<E>* weight,
                             const Accumulator<E>* bias, E* output) {
  using T = Accumulator<E>;
  constexpr int64_t lanes = kLanes<T>;
  constexpr int columns = (V - 1) * Stride + Taps;
  const DepthwiseWindow& w = p.window;
  for (int64_t z = 0; z < w.positions[0]; ++z) {
    const int64_t plane = w.low[0] + z * w.stride[0];
    const Range planes = inside(plane, w.dilation[0], 0, 0, w.size[0], w.taps[0]);
    for (int64_t y = 0; y < w.positions[1]; ++y) {
      const int64_t row = w.low[1] + y * w.stride[1];
      const Range rows = inside(row, w.dilation[1], 0, 0, w.size[1], w.taps[1]);
      E* const to = output + z * p.to.stride[0] + y * p.to.stride[1];
      for (int64_t x = 0; x < w.positions[2]; x += V) {
        const RowPiece piece = piece_at<V, Stride, Taps>(w, x);
        const bool inner = piece.begin == 0 && piece.end == columns && piece.positions == V;
        for (int64_t channel = 0, block = 0; channel < p.to.lanes; channel += lanes, ++block) {
          const int64_t channels = least(lanes, p.to.lanes - channel);
          const T* const weights = weight + block * p.block_pitch;
          const int64_t next = plane * p.image_stride[0] + (row + rows.end * w.dilation[1]) * p.image_stride[1];
          ask_for<V, 0>(image + next + (piece.first + Taps - Stride) * p.image_stride[2] + channel,
                        Stride * p.image_stride[2]);
          ask_for<V, 1>(to + p.to.stride[1] + x * p.to.stride[2] + channel, p.to.stride[2]);
          const Vector<T> start = bias ? load(bias + channel) : Vector<T>{};
          if (inner && channels == lanes)
            correlate_piece<E, V, Stride, Taps, true>(p, piece, planes, rows, plane, row, image + channel, weights,
                                                      start, to + channel, channels);
          else
            correlate_piece<E, V, Stride, Taps, false>(p, piece, planes, rows, plane, row, image + channel, weights,
                                                       start, to + channel, channels);
        }
      }
    }
  }
}

// The taps of `Rows` rows of the kernel from `tap_row` on, over all positions.
template <class E, int Most, int Stride, int Taps, int Rows>
void weight_sums_in_place_rows(const DepthwiseInPlace& p, const E* image, const E* grad, Accumulator<E>* sums,
                               int64_t channels, int64_t tap_plane, int64_t tap_row) {
  using T = Accumulator<E>;
  constexpr int64_t lanes = kLanes<T>;
  const DepthwiseWindow& w = p.window;
  Vector<T> sum[Rows][Taps];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < Taps; ++k) sum[r][k] = load(sums + (r * Taps + k) * lanes);
  for (int64_t z = 0; z < w.positions[0]; ++z) {
    const int64_t plane = w.low[0] + z * w.stride[0] + tap_plane * w.dilation[0];
    if (plane < 0 || plane >= w.size[0]) continue;
    for (int64_t y = 0; y < w.positions[1]; ++y) {
      const int64_t row = w.low[1] + y * w.stride[1] + tap_row * w.dilation[1];
      const auto piece_sums = [&](const RowPiece& piece, auto whole, auto size) UNFOLDCONV_INLINE_LAMBDA {
        constexpr bool all = decltype(whole)::value;
        constexpr int V = size.value, columns = (V - 1) * Stride + Taps;
        const E* const from = grad + z * p.to.stride[0] + y * p.to.stride[1] + piece.x * p.to.stride[2];
        if (tap_row == 0) {
          const int64_t next = plane * p.image_stride[0] + (row + w.taps[1] * w.dilation[1]) * p.image_stride[1];
          ask_for<V, 0>(image + next + (piece.first + Taps - Stride) * p.image_stride[2], Stride * p.image_stride[2]);
          ask_for<V, 0>(from + p.to.stride[1], p.to.stride[2]);
        }
        Vector<T> factor[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          if constexpr (all)
            factor[v] = load_widened(from + v * p.to.stride[2]);
          else
            factor[v] = load_widened(from + v * p.to.stride[2], channels);
        }
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          const int64_t image_row = row + r * w.dilation[1];
          if (image_row < 0 || image_row >= w.size[1]) continue;
          for_each_column<all, columns>(
              piece,
              image + plane * p.image_stride[0] + image_row * p.image_stride[1] + piece.first * p.image_stride[2],
              p.image_stride[2], channels, [&](Vector<T> value, int i) UNFOLDCONV_INLINE_LAMBDA {
#pragma GCC unroll 8
                for (int k = 0; k < Taps; ++k)
                  if (i >= k && (i - k) % Stride == 0 && (i - k) / Stride < V)
                    sum[r][k] += factor[(i - k) / Stride] * value;
              });
        }
      };
      int64_t x = 0;
      for (; x + Most <= w.positions[2]; x += Most) {
        const RowPiece piece = piece_at<Most, Stride, Taps>(w, x);
        if (piece.begin == 0 && piece.end == (Most - 1) * Stride + Taps && channels == lanes)
          piece_sums(piece, std::true_type{}, Constant<Most>{});
        else
          piece_sums(piece, std::false_type{}, Constant<Most>{});
      }
      // One by one: a position that does not exist must not meet the image, which may hold infinities.
      for (; x < w.positions[2]; ++x) piece_sums(piece_at<1, Stride, Taps>(w, x), std::false_type{}, Constant<1>{});
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < Taps; ++k) store(sums + (r * Taps + k) * lanes, sum[r][k]);
}

template <class E, int V, int Stride, int Taps>
void weight_sums_in_place_blocks(const DepthwiseInPlace& p, const E* image, const E* grad, Accumulator<E>* sums) {
  using T = Accumulator<E>;
  constexpr int64_t lanes = kLanes<T>;
  const DepthwiseWindow& w = p.window;
  for (int64_t channel = 0, block = 0; channel < p.to.lanes; channel += lanes, ++block) {
    const int64_t channels = least(lanes, p.to.lanes - channel);
    for (int64_t kz = 0; kz < w.taps[0]; ++kz) {
      T* const to = sums + block * p.block_pitch + kz * w.taps[1] * Taps * lanes;
      // Three rows of three sums fit the registers, and are enough to hide the latency of the additions.
      int64_t ky = 0;
      for (; ky + 3 <= w.taps[1]; ky += 3)
        weight_sums_in_place_rows<E, V, Stride, Taps, 3>(p, image + channel, grad + channel, to + ky * Taps * lanes,
                                                         channels, kz, ky);
      for (; ky < w.taps[1]; ++ky)
        weight_sums_in_place_rows<E, V, Stride, Taps, 1>(p, image + channel, grad + channel, to + ky * Taps * lanes,
                                                         channels, kz, ky);
    }
  }
}

// f(a null pointer to the dtype).
template <class F>
UNFOLDCONV_INLINE void with_element(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr));
    case ScalarType::Double: return f(static_cast<double*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<BFloat16*>(nullptr));
    default: return f(static_cast<Half*>(nullptr));
  }
}

void depthwise_correlate_in_place(const DepthwiseInPlace& p, const void* image, const void* weight, const void* bias,
                                  void* output) {
  with_element(p.to.dtype, [&](auto* element) {
    using E = std::remove_pointer_t<decltype(element)>;
    using T = Accumulator<E>;
    with_constants(p.window, [&](auto v, auto stride, auto taps) {
      correlate_in_place_rows<E, v.value, stride.value, taps.value>(
          p, static_cast<const E*>(image), static_cast<const T*>(weight), static_cast<const T*>(bias),
          static_cast<E*>(output));
    });
  });
}

void depthwise_weight_sums_in_place(const DepthwiseInPlace& p, const void* image, const void* grad, void* sums) {
  with_element(p.to.dtype, [&](auto* element) {
    using E = std::remove_pointer_t<decltype(element)>;
    const auto with_stride = [&](auto stride) {
      weight_sums_in_place_blocks<E, kPieceSize, stride.value, 3>(
          p, static_cast<const E*>(image), static_cast<const E*>(grad), static_cast<Accumulator<E>*>(sums));
    };
    p.window.stride[2] == 2 ? with_stride(Constant<2>{}) : with_stride(Constant<1>{});
  });
}

}  // namespace

void add_depthwise_in_place(Kernels& kernels) {
  kernels.depthwise.correlate_in_place = depthwise_correlate_in_place;
  kernels.depthwise.weight_sums_in_place = depthwise_weight_sums_in_place;
}

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
