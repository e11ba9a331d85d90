// Where positions read and write, and their patches as lines of terms, for images whose channels are neighbours in
// memory.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/shared/positions.h"
#include "cpu/shared/terms.h"
#include "problem/correlation.h"

namespace unfoldconv::cpu {

template <int Rank>
struct Position {
  int64_t index[Rank];
  int64_t image_offset, output_offset;
  bool interior;  // every tap reads inside the image
};

template <int Rank>
inline bool reads_inside(const Position<Rank>& position, const Tap<Rank>& tap, const Geometry<Rank>& geometry) {
  bool inside = true;
  for (int axis = 0; axis < Rank; ++axis)
    inside &= static_cast<uint64_t>(position.index[axis] * geometry.stride[axis] + tap.shift[axis]) <
              static_cast<uint64_t>(geometry.image[axis]);
  return inside;
}

template <int Rank>
void locate_positions(int64_t first, int64_t count, const Correlation<Rank>& problem, Position<Rank>* positions) {
  constexpr int last = Rank - 1;
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>&image = problem.image.layout, &output = problem.output.layout;
  // Positions [inside_begin, inside_end) of an axis see every tap inside the image.
  int64_t inside_begin[Rank], inside_end[Rank];
  for (int axis = 0; axis < Rank; ++axis) {
    const int64_t reach = (geometry.kernel[axis] - 1) * geometry.dilation[axis] - geometry.padding_low[axis];
    inside_begin[axis] = ceil_div(geometry.padding_low[axis], geometry.stride[axis]);
    inside_end[axis] = ceil_div(geometry.image[axis] - reach, geometry.stride[axis]);
  }
  int64_t sizes[Rank + 1] = {problem.batch()}, index[Rank + 1];  // images are one more axis
  std::copy_n(geometry.positions, Rank, sizes + 1);
  unravel<Rank + 1>(first, sizes, index);
  for (const Position<Rank>* const end = positions + count; positions != end;) {
    int64_t image_offset = index[0] * image.stride[0], output_offset = index[0] * output.stride[0];
    bool interior_row = true;
    for (int axis = 0; axis < Rank; ++axis) {
      const int64_t position = index[axis + 1];
      image_offset += position * geometry.stride[axis] * image.axis_stride[axis];
      output_offset += position * output.axis_stride[axis];
      if (axis < last) interior_row &= position >= inside_begin[axis] && position < inside_end[axis];
    }
    // The rest of the row. Field by field: copies of a whole struct wait for the stores into it.
    for (; positions != end && index[Rank] < sizes[Rank]; ++positions, ++index[Rank]) {
      std::copy_n(index + 1, Rank, positions->index);
      positions->image_offset = image_offset;
      positions->output_offset = output_offset;
      positions->interior = interior_row && index[Rank] >= inside_begin[last] && index[Rank] < inside_end[last];
      image_offset += geometry.stride[last] * image.axis_stride[last];
      output_offset += output.axis_stride[last];
    }
    index[Rank] = 0;
    for (int axis = Rank - 1; axis >= 0 && ++index[axis] == sizes[axis]; --axis) index[axis] = 0;
  }
}

// Copies positions with those first that read inside the image at all taps of the last axis, and then side by side
// those that miss the same ones: taps that no row of a tile reads are left out.
template <int Rank>
void group_by_taps(const Geometry<Rank>& geometry, const Position<Rank>* from, int64_t count, int64_t* missed,
                   Position<Rank>* to) {
  constexpr int last = Rank - 1;
  const int64_t kernel = geometry.kernel[last], dilation = geometry.dilation[last];
  int64_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    missed[i] = 0;
    if (from[i].interior) continue;
    const int64_t first = from[i].index[last] * geometry.stride[last] - geometry.padding_low[last];
    const int64_t begin = std::clamp<int64_t>(ceil_div(-first, dilation), 0, kernel);
    const int64_t end = std::clamp<int64_t>(ceil_div(geometry.image[last] - first, dilation), begin, kernel);
    missed[i] = begin * (kernel + 1) + kernel - end;
    most = std::max(most, missed[i]);
  }
  for (int64_t group = 0, next; group <= most; group = next) {
    next = most + 1;
    for (int64_t i = 0; i < count; ++i) {
      if (missed[i] == group)
        *to++ = from[i];
      else if (missed[i] > group)
        next = std::min(next, missed[i]);
    }
  }
}

// What of a patch is one stretch of memory: all taps of a row of the kernel, or single ones.
template <int Rank>
struct PatchRows {
  int64_t taps;           // of a row
  int64_t count;          // of rows
  const int64_t* offset;  // of each, from the image element at the window's first tap
};

// The patch at a position of the border as a line of terms.
template <class Terms, int Rank>
void gather_line(const Terms& terms, const Correlation<Rank>& problem, const typename Terms::From* image,
                 const Tap<Rank>* taps, const PatchRows<Rank>& rows, const Position<Rank>& position,
                 typename Terms::T* line) {
  using T = typename Terms::T;
  using Element = std::conditional_t<Terms::kHalves == 2, uint16_t, T>;
  constexpr int last = Rank - 1;
  const Geometry<Rank>& geometry = problem.geometry;
  const int64_t channels = problem.channels();
  Element* to = reinterpret_cast<Element*>(line);
  for (int64_t row = 0; row < rows.count; ++row, to += rows.taps * channels) {
    const Tap<Rank>& tap = taps[row * rows.taps];
    // Of the taps, those in [begin, end) read inside the image.
    bool inside = true;
    for (int axis = 0; axis < last; ++axis)
      inside &= static_cast<uint64_t>(position.index[axis] * geometry.stride[axis] + tap.shift[axis]) <
                static_cast<uint64_t>(geometry.image[axis]);
    const int64_t start = position.index[last] * geometry.stride[last] + tap.shift[last];
    const int64_t begin = std::clamp<int64_t>(-start, 0, rows.taps);
    const int64_t end = inside ? std::clamp<int64_t>(geometry.image[last] - start, begin, rows.taps) : begin;
    std::memset(static_cast<void*>(to), 0, begin * channels * sizeof(Element));
    if (begin < end)
      terms.pack.line(image + position.image_offset + tap.offset + begin * channels, 1,
                      reinterpret_cast<T*>(to + begin * channels), (end - begin) * channels);
    std::memset(static_cast<void*>(to + end * channels), 0, (rows.taps - end) * channels * sizeof(Element));
  }
  if (Terms::kHalves == 2 && geometry.tap_numel() * channels % 2 != 0) *to = Element{};
}

// The patches of a block of positions as lines of terms, in ascending order, as pack.lines demands.
template <class Terms, int Rank>
void gather_lines(const Terms& terms, const Correlation<Rank>& problem, const typename Terms::From* image,
                  const Tap<Rank>* taps, const PatchRows<Rank>& rows, const Position<Rank>* positions, int64_t count,
                  int64_t line_terms, typename Terms::T* lines) {
  constexpr int last = Rank - 1;
  const int64_t step = problem.geometry.stride[last] * problem.image.layout.axis_stride[last];
  for (int64_t i = 0, next; i < count; i = next) {
    next = i + 1;
    if (!positions[i].interior) {
      gather_line(terms, problem, image, taps, rows, positions[i], lines + i * line_terms);
      continue;
    }
    while (next < count && positions[next].interior &&
           positions[next].image_offset - positions[next - 1].image_offset == step)
      ++next;
    terms.pack.lines({image + positions[i].image_offset, step, next - i, rows.offset, rows.count,
                      rows.taps * problem.channels(), line_terms * Terms::kHalves},
                     lines + i * line_terms);
  }
}

}  // namespace unfoldconv::cpu
