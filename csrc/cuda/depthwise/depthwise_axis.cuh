// The axes of the direct kernels. Each is cut into phases, in which neighbouring results read at neighbouring places:
//
//   result[first + j * result_step] = sum over k < taps of source[base + (j * advance + k) * source_step] * weight[t],
//   t = tap + k * tap_step
//
// Forward, the phases are the residues of the result modulo the dilation, and advance is the stride. Backward (the
// input gradient), they are the residues modulo stride and dilation, each with those taps alone that reach it, in
// reverse order; advance is 1. So no product is with a zero that a stride or a dilation leaves, and no sum needs to
// know which of the two it is. (phases.h does the same on the host, for one phase at a time.)
#pragma once

#include <algorithm>
#include <numeric>

#include "cuda/shared/index.cuh"
#include "cuda/shared/shared.cuh"

namespace unfoldconv::cuda {

template <class Index>
struct Phase {
  Index first, base, taps, tap, tap_step;
};

template <class Index>
struct Axis {
  Index taps, stride, dilation, padding_low;
  Index source_size, result_size;
  Index source_step, result_step, advance;
  Index phases;
  bool backward;

  Axis() = default;
  template <class From>
  explicit Axis(const Axis<From>& other)
      : taps(other.taps),
        stride(other.stride),
        dilation(other.dilation),
        padding_low(other.padding_low),
        source_size(other.source_size),
        result_size(other.result_size),
        source_step(other.source_step),
        result_step(other.result_step),
        advance(other.advance),
        phases(other.phases),
        backward(other.backward) {}

  // The taps and the results of the phase that has most.
  Index most_taps() const { return backward ? ceil_div(taps, stride / std::gcd(stride, dilation)) : taps; }
  Index most_results() const { return ceil_div(result_size, result_step); }

  __device__ __forceinline__ Phase<Index> phase(Index residue) const {
    if (!backward) return {residue, residue * stride - padding_low, taps, 0, 1};
    const Index reached = residue + padding_low;  // the position that tap 0 would have, times the stride
    Index tap = 0;
    while (tap < taps && (reached - tap * dilation) % stride != 0) ++tap;
    if (tap == taps) return {residue, 0, 0, 0, 0};
    const Index step = source_step * stride / dilation;  // stride / gcd(stride, dilation)
    const Index count = (taps - 1 - tap) / step + 1;
    return {residue, (reached - tap * dilation) / stride - (count - 1) * source_step, count, tap + (count - 1) * step,
            -step};
  }
};

inline Axis<int64_t> make_axis(const Geometry<3>& geometry, int axis, bool backward) {
  const int64_t image = geometry.image[axis], positions = geometry.positions[axis];
  Axis<int64_t> result;
  result.taps = geometry.kernel[axis];
  result.stride = geometry.stride[axis];
  result.dilation = result.taps == 1 ? 1 : geometry.dilation[axis];
  result.padding_low = geometry.padding_low[axis];
  result.source_size = backward ? positions : image;
  result.result_size = backward ? image : positions;
  result.source_step = backward ? result.dilation / std::gcd(result.stride, result.dilation) : result.dilation;
  result.result_step = backward ? result.stride * result.source_step : result.dilation;
  result.advance = backward ? 1 : result.stride;
  result.phases = std::min(result.result_step, result.result_size);
  result.backward = backward;
  return result;
}

// Whether an axis has numbers whose products may not fit 64 bits, or more taps than fit into shared memory.
inline bool is_far(const Axis<int64_t>& axis) {
  constexpr int64_t far = int64_t{1} << 30;
  return axis.taps > kSharedBytes || axis.stride > far || axis.dilation > far;
}

// The largest offset of an element from the beginning of its image.
inline double image_reach(PlaneLayout<3> layout, const int64_t (&sizes)[3]) {
  layout.count[0] = 1;
  return largest_offset(layout, sizes);
}

// A bound on the index of every place, inside the source or not, that a tile of `results` results meets.
inline double largest_place(const Axis<int64_t>& axis, int64_t results) {
  const double ahead = (static_cast<double>(results) * axis.advance + axis.taps) * axis.source_step;
  const double last = static_cast<double>(axis.result_size) + static_cast<double>(results) * axis.result_step;
  return last * axis.advance + ahead + axis.source_size + std::fabs(static_cast<double>(axis.padding_low)) +
         static_cast<double>(axis.taps) * axis.dilation + static_cast<double>(axis.stride) * axis.source_step;
}

}  // namespace unfoldconv::cuda
