// Between tensors of either memory format and buffers with the channels innermost.
#include "cpu/kernels/depthwise_elements.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

// a0 b0 a1 b1 ... from the first halves of two vectors, or from the second.
template <class T>
struct Interleave {
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
  template <size_t... I>
  static UNFOLDCONV_INLINE Vector<T> of(Vector<T> a, Vector<T> b, Index first, std::index_sequence<I...>) {
    constexpr Index lanes = kLanes<T>;
    return first == 0 ? __builtin_shuffle(a, b, (Vector<Index>){(Index(I) / 2 + Index(I) % 2 * lanes)...})
                      : __builtin_shuffle(a, b, (Vector<Index>){(Index(I) / 2 + Index(I) % 2 * lanes + lanes / 2)...});
  }
};

// Rows become columns. A row and a lane number together are a number of 2 log2(lanes) bits: each step rotates it by
// one.
template <class T>
UNFOLDCONV_INLINE void transpose(Vector<T> (&rows)[kLanes<T>]) {
  constexpr int lanes = kLanes<T>;
  constexpr auto order = std::make_index_sequence<lanes>{};
#pragma GCC unroll 4
  for (int step = 1; step < lanes; step *= 2) {
    Vector<T> next[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = Interleave<T>::of(rows[i], rows[i + lanes / 2], 0, order);
      next[2 * i + 1] = Interleave<T>::of(rows[i], rows[i + lanes / 2], 1, order);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

// Walks the vectors of a buffer in the order of the positions.
template <class T>
struct BufferCursor {
  T* row;
  const DepthwiseCopy& copy;
  int64_t x = 0, y = 0;

  UNFOLDCONV_INLINE T* next() {
    T* const here = row + x * kLanes<T>;
    if (++x == copy.count[2]) {
      x = 0;
      row += copy.row_pitch;
      if (++y == copy.count[1]) {
        y = 0;
        row += copy.plane_pitch - copy.count[1] * copy.row_pitch;
      }
    }
    return here;
  }
};

// Calls f(offset, length) for each run of positions that lie side by side in a plane, in order.
template <class F>
UNFOLDCONV_INLINE void for_each_run(const DepthwiseCopy& copy, const F& f) {
  const auto& [planes, rows, columns] = copy.count;
  const bool whole_rows = rows == 1 || copy.stride[1] == columns;
  const bool whole_planes = whole_rows && (planes == 1 || copy.stride[0] == rows * columns);
  if (whole_planes) return f(int64_t{0}, planes * rows * columns);
  for (int64_t z = 0; z < planes; ++z) {
    if (whole_rows) {
      f(z * copy.stride[0], rows * columns);
      continue;
    }
    for (int64_t y = 0; y < rows; ++y) f(z * copy.stride[0] + y * copy.stride[1], columns);
  }
}

// Bytes ahead of which memory is asked for: so many streams side by side are more than the processor follows itself.
constexpr int64_t kAhead = 512;
// Of one stream: beyond the end of a page, where the processor's own prefetching stops.
constexpr int64_t kFarAhead = 4096;

// A tensor with the channels innermost: the blocks of a position lie side by side, and are read so.
template <class E>
void gather_channels(const DepthwiseCopy& copy, const E* tensor, Accumulator<E>* buffer) {
  using T = Accumulator<E>;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t whole = copy.channels / lanes, rest = copy.channels % lanes, pitch = copy.block_pitch;
  for (int64_t z = 0; z < copy.count[0]; ++z)
    for (int64_t y = 0; y < copy.count[1]; ++y) {
      const E* from = tensor + z * copy.stride[0] + y * copy.stride[1];
      T* to = buffer + z * copy.plane_pitch + y * copy.row_pitch;
      for (int64_t x = 0; x < copy.count[2]; ++x, from += copy.stride[2], to += lanes) {
        for (int64_t block = 0; block < whole; ++block) {
          __builtin_prefetch(from + block * lanes + kFarAhead / sizeof(E));
          store(to + block * pitch, load_widened(from + block * lanes));
        }
        if (rest) store(to + whole * pitch, load_widened(from + whole * lanes, rest));
      }
    }
}

// A block of `count` channels that are planes.
template <class E>
void gather_planes(const DepthwiseCopy& copy, int64_t count, const E* tensor, Accumulator<E>* buffer) {
  using T = Accumulator<E>;
  constexpr int64_t lanes = kLanes<T>;
  BufferCursor<T> cursor{buffer, copy};
  for_each_run(copy, [&](int64_t offset, int64_t length) {
    for (int64_t p = 0; p < length; p += lanes) {
      const int64_t positions = length - p < lanes ? length - p : lanes;
      Vector<T> rows[lanes];
      if (positions == lanes && count == lanes)
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) {
          const E* const from = tensor + offset + p + i * copy.channel_stride;
          __builtin_prefetch(from + kAhead / sizeof(E));
          rows[i] = load_widened(from);
        }
      else
        for (int64_t i = 0; i < lanes; ++i)
          rows[i] = i < count ? load_widened(tensor + offset + p + i * copy.channel_stride, positions) : Vector<T>{};
      transpose<T>(rows);
      for (int64_t i = 0; i < positions; ++i) store(cursor.next(), rows[i]);
    }
  });
}

// And back.
template <class E>
void scatter_planes(const DepthwiseCopy& copy, int64_t count, const Accumulator<E>* buffer, E* tensor) {
  using T = Accumulator<E>;
  constexpr int64_t lanes = kLanes<T>;
  BufferCursor<const T> cursor{buffer, copy};
  for_each_run(copy, [&](int64_t offset, int64_t length) {
    for (int64_t p = 0; p < length; p += lanes) {
      const int64_t positions = length - p < lanes ? length - p : lanes;
      Vector<T> rows[lanes];
      for (int64_t i = 0; i < lanes; ++i) rows[i] = i < positions ? load(cursor.next()) : Vector<T>{};
      transpose<T>(rows);
      if (positions == lanes && count == lanes)
#pragma GCC unroll 16
        for (int64_t i = 0; i < lanes; ++i) {
          E* const to = tensor + offset + p + i * copy.channel_stride;
          __builtin_prefetch(to + kAhead / sizeof(E), 1);
          store_rounded(to, rows[i]);
        }
      else
        for (int64_t i = 0; i < count; ++i)
          store_rounded(tensor + offset + p + i * copy.channel_stride, rows[i], positions);
    }
  });
}

// Calls f(count, tensor offset, buffer offset) for each block of channels.
template <class T, class F>
UNFOLDCONV_INLINE void for_each_block(const DepthwiseCopy& copy, const F& f) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t first = 0, block = 0; first < copy.channels; first += lanes, ++block)
    f(copy.channels - first < lanes ? copy.channels - first : lanes, first * copy.channel_stride,
      block * copy.block_pitch);
}

template <class E>
void gather_as(const DepthwiseCopy& copy, const E* tensor, Accumulator<E>* buffer) {
  if (copy.channel_stride == 1) return gather_channels(copy, tensor, buffer);
  for_each_block<Accumulator<E>>(
      copy, [&](int64_t count, int64_t from, int64_t to) { gather_planes(copy, count, tensor + from, buffer + to); });
}

template <class E>
void scatter_as(const DepthwiseCopy& copy, const Accumulator<E>* buffer, E* tensor) {
  for_each_block<Accumulator<E>>(
      copy, [&](int64_t count, int64_t to, int64_t from) { scatter_planes(copy, count, buffer + from, tensor + to); });
}

void depthwise_gather(const DepthwiseCopy& copy, ScalarType dtype, const void* tensor, void* buffer) {
  switch (dtype) {
    case ScalarType::Float: return gather_as(copy, static_cast<const float*>(tensor), static_cast<float*>(buffer));
    case ScalarType::Double: return gather_as(copy, static_cast<const double*>(tensor), static_cast<double*>(buffer));
    case ScalarType::BFloat16:
      return gather_as(copy, static_cast<const BFloat16*>(tensor), static_cast<float*>(buffer));
    default: return gather_as(copy, static_cast<const Half*>(tensor), static_cast<float*>(buffer));
  }
}

void depthwise_scatter(const DepthwiseCopy& copy, ScalarType dtype, const void* buffer, void* tensor) {
  switch (dtype) {
    case ScalarType::Float: return scatter_as(copy, static_cast<const float*>(buffer), static_cast<float*>(tensor));
    case ScalarType::Double: return scatter_as(copy, static_cast<const double*>(buffer), static_cast<double*>(tensor));
    case ScalarType::BFloat16:
      return scatter_as(copy, static_cast<const float*>(buffer), static_cast<BFloat16*>(tensor));
    default: return scatter_as(copy, static_cast<const float*>(buffer), static_cast<Half*>(tensor));
  }
}

}  // namespace

void add_depthwise_copy(Kernels& kernels) {
  kernels.depthwise.vector_bytes = kVectorBytes;
  kernels.depthwise.gather = depthwise_gather;
  kernels.depthwise.scatter = depthwise_scatter;
}

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
