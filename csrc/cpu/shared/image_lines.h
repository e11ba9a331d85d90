// Rows of an image as lines in cache, in which what one tap reads at neighbouring positions are neighbouring elements.
//
// A position p of an output row reads element p * stride + tap * dilation - padding of an image row. Taps that are a
// multiple of the stride apart read the same elements, at other positions: they share a line, of every stride-th
// element, and each begins its run further into it. So an element is moved once for all taps along a row, and for all
// rows of the output that read it, as long as its line stays in cache. The border is 0.
#pragma once

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "cpu/shared/positions.h"
#include "cpu/shared/terms.h"

namespace unfoldconv::cpu {

// Where a tap along the last axis finds what it reads.
struct LineTap {
  int64_t line, start;
};

// How the output is cut into pieces of its rows.
template <int Rank>
struct RowPieces {
  static constexpr int last = Rank - 1;

  int64_t piece, row_pieces;  // positions of a piece, and pieces of an output row
  int64_t pieces;             // of all images
  int64_t taps;               // along the last axis
  int64_t kernel_rows;

  RowPieces() = default;
  // The positions of a piece are a multiple of `unit`, unless a row has fewer.
  RowPieces(const Geometry<Rank>& geometry, int64_t batch, int64_t most_positions, int64_t unit) {
    const int64_t row = geometry.positions[last];
    row_pieces = std::max<int64_t>(1, ceil_div(row, most_positions));
    piece = round_up(ceil_div(row, row_pieces), unit);
    row_pieces = ceil_div(row, piece);
    pieces = batch * row_pieces;
    for (int axis = 0; axis < last; ++axis) pieces *= geometry.positions[axis];
    taps = geometry.kernel[last];
    kernel_rows = geometry.tap_numel() / taps;
  }

  // Neighbouring pieces follow each other along the axis before the last, so that they share rows of the image.
  PositionPiece<Rank> at(int64_t index, const Geometry<Rank>& geometry) const {
    PositionPiece<Rank> result{};
    int64_t part = 0;
    if constexpr (Rank > 1) {
      result.index[last - 1] = index % geometry.positions[last - 1];
      index /= geometry.positions[last - 1];
    }
    part = index % row_pieces;
    index /= row_pieces;
    for (int axis = last - 2; axis >= 0; --axis) {
      result.index[axis] = index % geometry.positions[axis];
      index /= geometry.positions[axis];
    }
    result.image = index;
    result.index[last] = part * piece;
    result.length = static_cast<int>(std::min(piece, geometry.positions[last] - part * piece));
    return result;
  }
};

// What the lines of one row of the image are.
template <int Rank>
struct LinePlan : RowPieces<Rank> {
  using RowPieces<Rank>::last;
  using RowPieces<Rank>::piece;
  using RowPieces<Rank>::taps;

  bool shared;           // by taps; otherwise each tap has its line
  int64_t lines, reach;  // of a row of the image and channel; elements beyond those that the first position reads
  int64_t channels;      // in a set
  int64_t pitch;         // of lines, in elements
  int64_t tail;          // where the tails begin in a set (see fill), in elements
  int64_t numel;         // of a set: all lines of a row of the image

  LinePlan() = default;
  // halves: Terms::kHalves.
  LinePlan(const Geometry<Rank>& geometry, int64_t batch, int64_t most_positions, int64_t halves)
      : RowPieces<Rank>(geometry, batch, most_positions, halves) {
    const int64_t stride = geometry.stride[last], dilation = geometry.dilation[last];
    lines = std::min(taps, stride / std::gcd(stride, dilation));
    reach = (taps - 1) * dilation / stride;
    shared = lines * (piece + reach) <= taps * piece;
    if (!shared) lines = taps, reach = 0;
    pitch = round_up(piece + reach, halves);
  }

  // For so many channels: lines come first, and then, for Pairs, a tail for each tap.
  void set_channels(int64_t count, int64_t halves) {
    channels = count;
    tail = lines * channels * pitch;
    numel = round_up(tail + (halves - 1) * 2 * taps * channels + kLinesSlack / 2, kAlignment);
  }

  // The sets that any `count` pieces in a row read.
  int64_t most_sets(int64_t count, const Geometry<Rank>& geometry) const {
    if constexpr (Rank == 1) {
      return count;
    } else {
      // Rows of the image along the axis before the last: those of pieces that follow each other overlap.
      constexpr int axis = last - 1;
      const int64_t kernel = geometry.kernel[axis], span = (kernel - 1) * geometry.dilation[axis] + 1;
      const int64_t columns = (count - 1) / std::max<int64_t>(1, geometry.positions[axis]) + 2;
      const int64_t rows = count * geometry.stride[axis] + columns * std::max<int64_t>(0, span - geometry.stride[axis]);
      return std::min(count * kernel, rows) * (this->kernel_rows / kernel);
    }
  }

  LineTap tap(int64_t i, const Geometry<Rank>& geometry) const {
    const int64_t stride = geometry.stride[last], first = i * geometry.dilation[last];
    if (!shared) return {i, 0};
    // Lines are in the order of their first tap.
    return {i % lines, (first - i % lines * geometry.dilation[last]) / stride};
  }

  // Writes channels [first, first + count) of a set for the positions of a piece; `row` is the row of the image that it
  // reads, at channel 0. Where the positions are odd in number, the last Pair of each tap is a tail, with 0 in its
  // second half.
  template <class Terms, class Element>
  void fill(const Terms& terms, const Geometry<Rank>& geometry, const PlaneLayout<Rank>& image,
            const typename Terms::From* row, int64_t first_channel, int64_t count, const PositionPiece<Rank>& piece,
            Element* to) const {
    using T = typename Terms::T;
    const int64_t stride = geometry.stride[last], element = image.axis_stride[last], channel = image.stride[2];
    const int64_t length = piece.length + reach;
    // Of a pixel whose channels are all here, neighbours in memory, the next pixel is more channels, as the next line
    // is.
    const int64_t corner = piece.index[last] * stride - geometry.padding_low[last];
    const bool inside = corner >= 0 && corner + (length - 1) * stride + lines <= geometry.image[last];
    const bool together =
        lines > 1 && geometry.dilation[last] == 1 && inside && channel == 1 && element == channels && count == channels;
    if (together)
      terms.pack.turn(row + corner * element, stride * element, lines * channels, length, reinterpret_cast<T*>(to),
                      pitch);
    for (int64_t line = 0; line < (together ? 0 : lines); ++line) {
      const int64_t first = piece.index[last] * stride + line * geometry.dilation[last] - geometry.padding_low[last];
      const int64_t begin = std::clamp<int64_t>(ceil_div(-first, stride), 0, length);
      const int64_t end = std::clamp<int64_t>(ceil_div(geometry.image[last] - first, stride), begin, length);
      Element* const base = to + (line * channels + first_channel) * pitch;
      const auto* const from = row + first_channel * channel + (first + begin * stride) * element;
      const bool transposed = channel == 1 && count > 1 && begin < end;
      if (transposed)
        terms.pack.turn(from, stride * element, count, end - begin, reinterpret_cast<T*>(base + begin), pitch);
      for (int64_t c = 0; c < count; ++c) {
        Element* const elements = base + c * pitch;
        std::fill(elements, elements + begin, Element{});
        // It may write one element too much, which the next overwrites.
        if (!transposed && begin < end)
          terms.pack.line(from + c * channel, stride * element, reinterpret_cast<T*>(elements + begin), end - begin);
        std::fill(elements + end, elements + length, Element{});
      }
    }
    if (Terms::kHalves == 2 && piece.length % 2 != 0)
      for (int64_t i = 0; i < taps; ++i) {
        const LineTap at = tap(i, geometry);
        const Element* const from = to + (at.line * channels + first_channel) * pitch + at.start + piece.length - 1;
        Element* const pairs = to + tail + (i * channels + first_channel) * 2;
        for (int64_t c = 0; c < count; ++c) pairs[2 * c] = from[c * pitch], pairs[2 * c + 1] = Element{};
      }
  }
};

// Which sets of lines stand where. Those of the pieces at hand stay; the others make room.
class LineCache {
 public:
  struct Slot {
    int64_t key = -1;
    int64_t use = -1;
  };

  LineCache(Slot* slots, int64_t count) : slots_(slots), count_(count) { std::fill(slots, slots + count, Slot{}); }

  // Begins a round of uses.
  void begin() { ++round_; }
  // The slot that holds a key, kept for this round, or -1. What was found last is where the search begins.
  int64_t find(int64_t key) {
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t slot = last_ + i < count_ ? last_ + i : last_ + i - count_;
      if (slots_[slot].key != key) continue;
      slots_[slot].use = round_;
      last_ = slot;
      return slot;
    }
    return -1;
  }
  // A slot that this round does not use yet, for a key that no slot has.
  int64_t take(int64_t key) {
    while (slots_[next_].use == round_) next_ = next_ + 1 < count_ ? next_ + 1 : 0;
    slots_[next_] = {key, round_};
    return last_ = next_;
  }

 private:
  Slot* slots_;
  int64_t count_, last_ = 0, next_ = 0, round_ = 0;
};

// The rows of the image along all but the last axis that a piece reads for each row of the kernel, numbered over all
// images, or -1 beyond the border.
template <int Rank, class F>
void for_each_row_read(const PositionPiece<Rank>& piece, const Geometry<Rank>& geometry, const Tap<Rank>* taps,
                       int64_t kernel_rows, const F& f) {
  constexpr int last = Rank - 1;
  for (int64_t i = 0; i < kernel_rows; ++i) {
    const Tap<Rank>& tap = taps[i * geometry.kernel[last]];
    int64_t row = piece.image;
    bool inside = true;
    for (int axis = 0; axis < last; ++axis) {
      const int64_t index = piece.index[axis] * geometry.stride[axis] + tap.shift[axis];
      inside &= static_cast<uint64_t>(index) < static_cast<uint64_t>(geometry.image[axis]);
      row = row * geometry.image[axis] + index;
    }
    f(i, inside ? row : -1);
  }
}

constexpr int64_t kToFill = -2;            // minus a set: one that is not filled yet
constexpr int64_t kChannelsTogether = 16;  // whose rows are moved together

// Brings the lines of some pieces into `memory`, and says in sets[piece, kernel row] which set they are, or -1 beyond
// the border. `plane` is the image at its first of `channels` channels. Lines is LinePlan, or what fills sets
// otherwise.
template <class Terms, class Lines, int Rank>
void fetch_lines(const Terms& terms, const Lines& lines, const Geometry<Rank>& geometry, const PlaneLayout<Rank>& image,
                 const typename Terms::From* plane, int64_t channels, const Tap<Rank>* taps,
                 const PositionPiece<Rank>* pieces, int64_t count, LineCache& cache, typename Terms::Element* memory,
                 int64_t* sets) {
  constexpr int last = Rank - 1;
  const auto key = [&](int64_t row, const PositionPiece<Rank>& piece) {
    return row * lines.row_pieces + piece.index[last] / lines.piece;
  };
  cache.begin();
  // What is there already must not make room for what is not.
  for (int64_t p = 0; p < count; ++p)
    for_each_row_read(pieces[p], geometry, taps, lines.kernel_rows, [&](int64_t i, int64_t row) {
      sets[p * lines.kernel_rows + i] = row < 0 ? -1 : cache.find(key(row, pieces[p]));
    });
  for (int64_t p = 0; p < count; ++p)
    for_each_row_read(pieces[p], geometry, taps, lines.kernel_rows, [&](int64_t i, int64_t row) {
      int64_t& set = sets[p * lines.kernel_rows + i];
      if (set >= 0 || row < 0) return;
      set = cache.find(key(row, pieces[p]));
      if (set < 0) set = kToFill - cache.take(key(row, pieces[p]));
    });
  // A few channels at a time, so that rows that are neighbours in memory follow each other, unless channels are.
  const int64_t together = image.stride[2] == 1 ? channels : kChannelsTogether;
  for (int64_t first = 0; first < channels; first += together)
    for (int64_t p = 0; p < count; ++p) {
      int64_t corner = pieces[p].image * image.stride[0];
      for (int axis = 0; axis < last; ++axis)
        corner += pieces[p].index[axis] * geometry.stride[axis] * image.axis_stride[axis];
      for (int64_t i = 0; i < lines.kernel_rows; ++i) {
        const int64_t set = sets[p * lines.kernel_rows + i];
        if (set > kToFill) continue;
        int64_t offset = corner;
        for (int axis = 0; axis < last; ++axis) offset += taps[i * lines.taps].shift[axis] * image.axis_stride[axis];
        lines.fill(terms, geometry, image, plane + offset, first, std::min(together, channels - first), pieces[p],
                   memory + (kToFill - set) * lines.numel);
      }
    }
  for (int64_t i = 0; i < count * lines.kernel_rows; ++i)
    if (sets[i] <= kToFill) sets[i] = kToFill - sets[i];
}

}  // namespace unfoldconv::cpu
