// Rows of grad_input that are summed from columns of rows of grad_output (input_grad_engines.h).
//
// Along the last axis a row is cut into chunks, of as many pixels as the stride: what the windows of one position after
// the other are apart. Chunk q begins at pixel q * stride - padding.
#pragma once

#include <algorithm>
#include <numeric>

#include "cpu/input_grad/input_grad_engines.h"
#include "cpu/shared/image_lines.h"

namespace unfoldconv::cpu {

template <int Rank>
struct FoldedRows {
  static constexpr int last = Rank - 1;

  int64_t kernel_rows, block_rows;  // rows of the kernel, and of those at one tap of the first axis
  int64_t reach;                    // chunks that a window goes beyond that where it begins
  int64_t first_chunk, chunks;      // of a row
  int64_t piece, pieces;            // chunks of a piece of a row, and pieces of one
  int64_t positions;                // of grad_output that a piece reads
  int64_t row_count;                // pieces of all images
  int64_t slots;                    // rows of grad_output that a piece reads

  // Those that one task sums.
  struct Row {
    int64_t at[Rank];  // image, and index along all but the last axis
    int64_t part;
    int64_t first, chunks;  // along the last axis
  };

  FoldedRows(const Geometry<Rank>& geometry, int64_t batch, int64_t most_chunks) {
    const int64_t stride = geometry.stride[last], padding = geometry.padding_low[last];
    kernel_rows = geometry.tap_numel() / geometry.kernel[last];
    block_rows = kernel_rows / geometry.kernel[0];
    reach = (geometry.kernel[last] - 1) * geometry.dilation[last] / stride;
    first_chunk = -ceil_div(-padding, stride);
    chunks = ceil_div(geometry.image[last] + padding, stride) - first_chunk;
    pieces = ceil_div(chunks, most_chunks);
    piece = ceil_div(chunks, pieces);
    positions = piece + reach;
    row_count = batch * pieces;
    slots = 1;
    for (int axis = 0; axis < last; ++axis) {
      row_count *= geometry.image[axis];
      slots *= ceil_div(geometry.kernel[axis],
                        geometry.stride[axis] / std::gcd(geometry.stride[axis], geometry.dilation[axis]));
    }
  }

  // At least as many as share a row of grad_output, of which neighbouring tasks compute columns each for itself.
  int64_t rows_of_task(const Geometry<Rank>& geometry) const {
    return std::max(geometry.kernel[last - 1], ceil_div(row_count, kTasksPerProblem));
  }

  // Rows follow each other along the axis before the last, so that they share rows of grad_output.
  Row row(int64_t index, const Geometry<Rank>& geometry) const {
    Row result;
    result.at[last] = index % geometry.image[last - 1];
    index /= geometry.image[last - 1];
    result.part = index % pieces;
    index /= pieces;
    for (int axis = last - 2; axis >= 0; --axis) {
      result.at[axis + 1] = index % geometry.image[axis];
      index /= geometry.image[axis];
    }
    result.at[0] = index;
    result.first = first_chunk + result.part * piece;
    result.chunks = std::min(piece, chunks - result.part * piece);
    return result;
  }

  // For each row t of the kernel by which `row` is reached: compute(block, slot, offset) where the columns of that row
  // of grad_output, at `offset`, are not in the cache yet, and use(t, slot). A block is a tap of the first axis.
  template <class Compute, class Use>
  void for_each_source(const Row& row, const Geometry<Rank>& geometry, const PlaneLayout<Rank>& output,
                       LineCache& cache, const Compute& compute, const Use& use) const {
    cache.begin();
    for (int pass = 0; pass < 2; ++pass)  // what is there already must not make room for what is not
      for (int64_t t = 0; t < kernel_rows; ++t) {
        int64_t taps[Rank], from = row.at[0], offset = row.at[0] * output.stride[0];
        unravel<Rank>(t * geometry.kernel[last], geometry.kernel, taps);
        bool inside = true;
        for (int axis = 0; axis < last; ++axis) {
          const int64_t reached = row.at[axis + 1] + geometry.padding_low[axis] - taps[axis] * geometry.dilation[axis];
          const int64_t position = reached / geometry.stride[axis];
          inside &= reached >= 0 && reached % geometry.stride[axis] == 0 && position < geometry.positions[axis];
          from = from * geometry.positions[axis] + position;
          offset += position * output.axis_stride[axis];
        }
        if (!inside) continue;
        const int64_t block = t / block_rows, key = (from * geometry.kernel[0] + block) * pieces + row.part;
        int64_t slot = cache.find(key);
        if (pass == 0) continue;
        if (slot < 0) {
          slot = cache.take(key);
          compute(block, slot, offset);
        }
        use(t, slot);
      }
  }

  // Where a pixel of a row lies at channel 0, in elements of grad_input.
  static int64_t offset_of(const Row& row, int64_t pixel, const PlaneLayout<Rank>& input) {
    int64_t offset = row.at[0] * input.stride[0] + pixel * input.axis_stride[last];
    for (int axis = 0; axis < last; ++axis) offset += row.at[axis + 1] * input.axis_stride[axis];
    return offset;
  }

  // Calls f(first, count, offset) with those of the row's pixels at `phase` of a chunk, one per chunk, that are in the
  // image: `first` counts chunks from the beginning of the row; `offset` is that of the first of them.
  template <class F>
  void for_pixels(const Row& row, const Geometry<Rank>& geometry, const PlaneLayout<Rank>& input, int64_t phase,
                  const F& f) const {
    const int64_t stride = geometry.stride[last];
    const int64_t pixel = row.first * stride + phase - geometry.padding_low[last];
    const int64_t begin = std::clamp<int64_t>(ceil_div(-pixel, stride), 0, row.chunks);
    const int64_t end = std::clamp<int64_t>(ceil_div(geometry.image[last] - pixel, stride), begin, row.chunks);
    if (begin < end) f(begin, end - begin, offset_of(row, pixel + begin * stride, input));
  }
};

inline const Fold<float>& fold_of(const Tiles<float>&) { return kernels().tiles.f32_fold; }
inline const Fold<float>& fold_of(const Tiles<Pair>&) { return kernels().tiles.f32_fold; }
inline const Fold<double>& fold_of(const Tiles<double>&) { return kernels().tiles.f64_fold; }

// Where a weight of an input gradient lies: that of input channel c at a tap.
template <int Rank>
int64_t weight_offset(const InputGrad<Rank>& problem, int64_t tap, int64_t c) {
  const auto& layout = problem.weight.layout;
  int64_t index[Rank], offset = c * layout.stride[1];
  unravel<Rank>(tap, problem.geometry.kernel, index);
  for (int axis = 0; axis < Rank; ++axis) offset += index[axis] * layout.axis_stride[axis];
  return offset;
}

}  // namespace unfoldconv::cpu
