// How the depthwise engine cuts a problem: which elements a box of results reads, and boxes that fit a buffer.
#pragma once

#include <algorithm>
#include <vector>

#include "problem/geometry.h"
#include "problem/phases.h"
#include "runtime/rows.h"

namespace unfoldconv::cpu::depthwise {

// Results first + step * j, j < count, of one axis that are one correlation: result j sums the taps k < taps at the
// source's elements j * stride - padding_low + k * dilation; tap k is tap first_tap + k * tap_step of the weight.
struct AxisPart {
  int64_t first, step, count;
  int64_t taps, first_tap, tap_step;
  int64_t stride, dilation, padding_low;
};

// Some of the elements of an axis.
struct Span {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

// One axis of a problem: `results` elements, computed part by part from `source` elements.
struct Axis {
  int64_t results, source;
  std::vector<AxisPart> parts;

  // The j of a part whose results lie in a box.
  static Span of_part(const AxisPart& part, Span box) {
    const int64_t begin = std::max<int64_t>(0, ceil_div(box.begin - part.first, part.step));
    return {begin, std::max(begin, std::min(part.count, ceil_div(box.end - part.first, part.step)))};
  }

  // The elements of the source that the results in a box read, padding included.
  Span read_by(Span box) const {
    Span all;
    bool any = false;
    for (const AxisPart& part : parts) {
      const Span j = of_part(part, box);
      if (j.size() == 0 || part.taps == 0) continue;
      const Span read{j.begin * part.stride - part.padding_low,
                      (j.end - 1) * part.stride - part.padding_low + (part.taps - 1) * part.dilation + 1};
      all = any ? Span{std::min(all.begin, read.begin), std::max(all.end, read.end)} : read;
      any = true;
    }
    return all;
  }

  // The most that one result reads.
  int64_t span() const {
    int64_t most = 1;
    for (const AxisPart& part : parts) most = std::max(most, (part.taps - 1) * part.dilation + 1);
    return most;
  }

  // Those that are no padding.
  Span within_source(Span read) const {
    const int64_t begin = std::clamp<int64_t>(read.begin, 0, source);
    return {begin, std::clamp(read.end, begin, source)};
  }

  int64_t boxes(int64_t size) const { return ceil_div(results, size); }
  Span box(int64_t index, int64_t size) const { return {index * size, std::min(results, (index + 1) * size)}; }
};

// The convolution itself.
template <int Rank>
Axis forward_axis(const Geometry<Rank>& g, int axis) {
  return {g.positions[axis],
          g.image[axis],
          {{0, 1, g.positions[axis], g.kernel[axis], 0, 1, g.stride[axis], g.dilation[axis], g.padding_low[axis]}}};
}

// Its input gradient: a part for each phase (phases.h).
template <int Rank>
Axis backward_axis(const Geometry<Rank>& g, int axis) {
  Axis result{g.image[axis], g.positions[axis], {}};
  for (const AxisPhase& phase : axis_phases(g.image[axis], g.kernel[axis], g.stride[axis], g.dilation[axis],
                                            g.padding_low[axis], /*longest_run=*/1))
    result.parts.push_back({phase.first, g.stride[axis], phase.count, phase.taps, phase.tap, -phase.tap_step, 1,
                            phase.dilation, phase.padding_low});
  return result;
}

// Boxes of one size over all three axes, numbered in row-major order.
struct Boxes {
  int64_t size[3];       // of a box, but for the last ones
  int64_t most_read[3];  // elements of the source that a box reads at most; columns with their padding

  int64_t numel() const { return size[0] * size[1] * size[2]; }
  int64_t read_numel() const { return most_read[0] * most_read[1] * most_read[2]; }
};

inline int64_t most_read(const Axis& axis, int64_t size, bool padded) {
  int64_t most = 0;
  for (int64_t i = 0; i < axis.boxes(size); ++i) {
    const Span read = axis.read_by(axis.box(i, size));
    most = std::max(most, padded ? read.size() : axis.within_source(read).size());
  }
  return most;
}

// The largest boxes with read_bytes for each element that they read and result_bytes for each of their own within
// `room`; smaller ones than one result are not, whatever they take.
inline Boxes cut(const Axis (&axes)[3], int64_t read_bytes, int64_t result_bytes, int64_t room) {
  Boxes boxes;
  for (int axis = 0; axis < 3; ++axis) {
    boxes.size[axis] = axes[axis].results;
    boxes.most_read[axis] = most_read(axes[axis], boxes.size[axis], axis == 2);
  }
  while (static_cast<double>(boxes.read_numel()) * read_bytes + static_cast<double>(boxes.numel()) * result_bytes >
         static_cast<double>(room)) {
    // Along the axis where the overlap of neighbours costs least.
    int longest = -1;
    double best = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const double length = static_cast<double>(boxes.size[axis]) / axes[axis].span();
      if (boxes.size[axis] > 1 && length > best) longest = axis, best = length;
    }
    if (longest < 0) break;
    boxes.size[longest] = (boxes.size[longest] + 1) / 2;
    boxes.most_read[longest] = most_read(axes[longest], boxes.size[longest], longest == 2);
  }
  return boxes;
}

}  // namespace unfoldconv::cpu::depthwise
