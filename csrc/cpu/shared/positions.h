// A run of positions, counted over all images, as pieces of rows; and what a tap reads at each of them.
#pragma once

#include <algorithm>

#include "cpu/kernels/pack_kernels.h"
#include "problem/planes.h"
#include "runtime/rows.h"

namespace unfoldconv::cpu {

// Neighbouring positions of one image along the last axis.
template <int Rank>
struct PositionPiece {
  int64_t image;
  int64_t index[Rank];  // of the first
  int lane;             // of the first, counted from the beginning of the run
  int length;
};

// Splits positions [first, first + count) of all images into pieces and returns how many there are. `pieces` has room
// for most_pieces().
template <int Rank>
int split_positions(int64_t first, int64_t count, const int64_t (&positions)[Rank], PositionPiece<Rank>* pieces) {
  const int64_t per_image = Geometry<Rank>::product(positions);
  int found = 0;
  for (int64_t lane = 0; lane < count;) {
    const int64_t image = (first + lane) / per_image, start = (first + lane) % per_image;
    const int64_t length = std::min(count - lane, per_image - start);
    for_each_row<Rank>({start, length}, positions, [&](const int64_t (&index)[Rank], int64_t row_length) {
      PositionPiece<Rank>& piece = pieces[found++];
      piece.image = image;
      std::copy(index, index + Rank, piece.index);
      piece.lane = static_cast<int>(lane);
      piece.length = static_cast<int>(row_length);
      lane += row_length;
    });
  }
  return found;
}

// Joins pieces of the same image, whose positions then lie in a line; returns how many remain.
template <int Rank>
int join_pieces(PositionPiece<Rank>* pieces, int count) {
  int joined = 0;
  for (int piece = 0; piece < count; ++piece) {
    if (joined > 0 && pieces[joined - 1].image == pieces[piece].image)
      pieces[joined - 1].length += pieces[piece].length;
    else
      pieces[joined++] = pieces[piece];
  }
  return joined;
}

// How many pieces `count` positions can have.
template <int Rank>
int64_t most_pieces(int64_t count, const int64_t (&positions)[Rank]) {
  return std::min(count, count / std::max<int64_t>(1, positions[Rank - 1]) + 2);
}

// Offset of the first position of a piece in planes of that many positions.
template <int Rank>
int64_t offset_of(const PositionPiece<Rank>& piece, const PlaneLayout<Rank>& layout) {
  int64_t offset = piece.image * layout.stride[0];
  for (int axis = 0; axis < Rank; ++axis) offset += piece.index[axis] * layout.axis_stride[axis];
  return offset;
}

// Whether the positions of an image lie in a line, in order.
template <int Rank>
bool is_line(const PlaneLayout<Rank>& layout, const int64_t (&positions)[Rank]) {
  int64_t stride = 1;
  for (int axis = Rank - 1; axis >= 0; --axis) {
    if (positions[axis] > 1 && layout.axis_stride[axis] != stride) return false;
    stride *= positions[axis];
  }
  return true;
}

// From one position of an image to the next, where they lie in a line or in one row. The stride of an axis of size 1
// says nothing, so it is that of the last axis that has more.
template <int Rank>
int64_t position_step(const PlaneLayout<Rank>& layout, const int64_t (&positions)[Rank]) {
  for (int axis = Rank - 1; axis >= 0; --axis)
    if (positions[axis] > 1) return layout.axis_stride[axis];
  return 1;
}

// The taps of a window in row-major order: how far each moves into the image, and into the weight.
template <int Rank>
struct Tap {
  int64_t shift[Rank];  // image index = position * stride + shift
  int64_t offset;       // of an image element
};

template <int Rank>
void list_taps(const Geometry<Rank>& geometry, const int64_t (&axis_stride)[Rank], Tap<Rank>* taps) {
  int64_t index[Rank] = {};
  for (int64_t flat = 0, count = geometry.tap_numel(); flat < count; ++flat) {
    taps[flat].offset = 0;
    for (int axis = 0; axis < Rank; ++axis) {
      taps[flat].shift[axis] = index[axis] * geometry.dilation[axis] - geometry.padding_low[axis];
      taps[flat].offset += taps[flat].shift[axis] * axis_stride[axis];
    }
    for (int axis = Rank - 1; axis >= 0 && ++index[axis] == geometry.kernel[axis]; --axis) index[axis] = 0;
  }
}

// Where the taps of a weight lie, in row-major order.
template <int Rank>
void list_offsets(const int64_t (&kernel)[Rank], const int64_t (&axis_stride)[Rank], int64_t* offsets) {
  int64_t index[Rank] = {};
  for (int64_t flat = 0, count = Geometry<Rank>::product(kernel); flat < count; ++flat) {
    offsets[flat] = 0;
    for (int axis = 0; axis < Rank; ++axis) offsets[flat] += index[axis] * axis_stride[axis];
    for (int axis = Rank - 1; axis >= 0 && ++index[axis] == kernel[axis]; --axis) index[axis] = 0;
  }
}

// Writes the pieces of a panel of positions for one tap; returns where the next tap's begin.
template <int Rank>
Piece* pieces_of_tap(const Tap<Rank>& tap, const Geometry<Rank>& geometry, const PlaneLayout<Rank>& image,
                     const PositionPiece<Rank>* positions, int position_pieces, int lanes, TapPieces& found,
                     Piece* pieces) {
  constexpr int last = Rank - 1;
  found.pieces = pieces;
  std::fill(found.count, found.count + kTileVectors, 0);
  const int64_t stride = geometry.stride[last], step = stride * image.axis_stride[last];
  // Along the last axis the positions [inside_begin, inside_end) read inside the image.
  const int64_t inside_begin = ceil_div(std::max<int64_t>(0, -tap.shift[last]), stride);
  const int64_t inside_end = ceil_div(std::max<int64_t>(0, geometry.image[last] - tap.shift[last]), stride);
  for (const PositionPiece<Rank>*piece = positions, *end = piece + position_pieces; piece != end; ++piece) {
    int64_t offset = piece->image * image.stride[0] + tap.offset;
    bool inside = true;
    for (int axis = 0; axis < Rank; ++axis) {
      const int64_t position = piece->index[axis] * geometry.stride[axis];
      if (axis < last)
        inside &= static_cast<uint64_t>(position + tap.shift[axis]) < static_cast<uint64_t>(geometry.image[axis]);
      offset += position * image.axis_stride[axis];
    }
    if (!inside) continue;
    const int64_t start = piece->index[last];
    const int64_t from = piece->lane + std::max<int64_t>(0, inside_begin - start);
    const int64_t to = piece->lane + std::min<int64_t>(piece->length, inside_end - start);
    offset -= piece->lane * step;  // of lane 0 of the panel
    for (int64_t lane = from; lane < to;) {
      const int64_t vector = lane / lanes, vector_end = std::min(to, (vector + 1) * lanes);
      *pieces++ = {offset + vector * lanes * step, static_cast<int32_t>(lane - vector * lanes),
                   static_cast<int32_t>(vector_end - vector * lanes)};
      ++found.count[vector];
      lane = vector_end;
    }
  }
  return pieces;
}

}  // namespace unfoldconv::cpu
