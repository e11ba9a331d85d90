// Boxes of a tensor (planes, and places along three axes) and their copies in shared memory, which are of the type that
// sums are in.
//
// A box is made of lines: the places along its fast axis, x, or y where a plane is a single column. A table in shared
// memory says where each line of a plane begins in the tensor. The threads of a warp go along a line, or along the
// planes where those lie closer together (channels_last), so both formats are moved as they lie: pairs in one piece
// where all of them are aligned, and kBoxBatch rows at a time, so that enough loads are under way.
#pragma once

#include <cstdlib>

#include "cuda/depthwise/depthwise_axis.cuh"
#include "cuda/depthwise/depthwise_launch.h"
#include "cuda/shared/launch.cuh"

namespace unfoldconv::cuda {

// With 64-bit indices one, because such tensors are too rare for the code that it takes.
template <class Index>
constexpr int kBoxBatch = sizeof(Index) == 4 ? 4 : 1;

// How a box of some size is copied. In shared memory the places along the fast axis are contiguous; those along the
// slow ones follow, the first of which is z.
struct BoxPlan {
  int planes, length, lines;  // lines of a plane
  int fast, slow;             // axes: the one of the lines, and the faster of the two others
  int pitch[3], plane_pitch;  // in shared memory
  bool along_planes, pairs;
  int rows, lanes_log2;          // a row is what 2^lanes_log2 neighbouring threads move together
  Divider<int32_t> inner;        // of a row: lines of a plane, or, along the planes, places of a line
  Divider<int32_t> slow_places;  // of a line
};

// A tensor of which there are boxes, in elements. `step` is the distance of neighbouring places of a box.
struct BoxTensor {
  const void* data;
  int64_t element_bytes, batch_stride, channel_stride, channels;
  int64_t size[3], stride[3], step[3];

  void swap_last_axes() {
    std::swap(size[1], size[2]);
    std::swap(stride[1], stride[2]);
    std::swap(step[1], step[2]);
  }

  int fast_axis(const int64_t (&places)[3]) const {
    return places[2] == 1 || (places[1] > 1 && stride[1] < stride[2]) ? 1 : 2;
  }
  int64_t lines(const int64_t (&places)[3]) const { return places[0] * places[3 - fast_axis(places)]; }
  bool along_planes(int64_t planes, const int64_t (&places)[3]) const {
    return planes > 1 && channel_stride < stride[fast_axis(places)];
  }

  // Whether every pair of elements that a box moves together lies at an even offset and wholly inside the tensor.
  bool in_pairs(int64_t planes, const int64_t (&places)[3]) const {
    const int fast = fast_axis(places);
    const bool along = along_planes(planes, places);
    bool even = reinterpret_cast<uintptr_t>(data) % (2 * element_bytes) == 0 && batch_stride % 2 == 0;
    for (int axis = 0; axis < 3; ++axis) even &= (!along && axis == fast) || size[axis] == 1 || stride[axis] % 2 == 0;
    if (along) return even && channel_stride == 1 && channels % 2 == 0 && planes % 2 == 0;
    return even && (channels == 1 || channel_stride % 2 == 0) && stride[fast] == 1 && step[fast] == 1 &&
           size[fast] % 2 == 0;
  }

  // What it costs more to move elements that are not neighbours: memory is moved in sectors of 32 bytes, and half of
  // one is reckoned to be used by another block before it is gone.
  double sector_penalty(int64_t planes, const int64_t (&places)[3]) const {
    const int fast = fast_axis(places);
    const double run = along_planes(planes, places) ? planes : static_cast<double>(places[fast]) / step[fast];
    return std::max(1.0, 16.0 / (run * static_cast<double>(element_bytes)));
  }
};

// Without sizes and steps, which orient() adds.
inline BoxTensor box_tensor(const DirectOperand& operand, ScalarType dtype) {
  const auto& [count, stride, axis_stride] = operand.layout;
  BoxTensor result{operand.data, element_size(dtype), stride[0], stride[2], count[1] * count[2], {}, {}, {}};
  std::copy(axis_stride, axis_stride + 3, result.stride);
  return result;
}

// The axes of a problem in the order in which the kernels have them, which is the same for all tensors: strips are
// along y, so a single row becomes a column. `tap_stride` is of anything that has taps.
inline void orient(Axis<int64_t> (&axis)[3], int64_t (&tap_stride)[3], BoxTensor& source, BoxTensor& result) {
  if (axis[1].most_results() == 1) {
    std::swap(axis[1], axis[2]);
    std::swap(tap_stride[1], tap_stride[2]);
    source.swap_last_axes(), result.swap_last_axes();
  }
  for (int i = 0; i < 3; ++i) {
    source.size[i] = axis[i].source_size, source.step[i] = axis[i].source_step;
    result.size[i] = axis[i].result_size, result.step[i] = axis[i].result_step;
  }
}

// The pitch of planes in shared memory. It is odd, so that threads that go along the planes meet no bank conflicts, and
// with `spread` one more than a multiple of the banks, so that those that also go along y in steps of 8 do not.
inline int64_t plane_pitch_of(const int64_t (&places)[3], bool spread) {
  const int64_t numel = places[0] * places[1] * places[2];
  return spread ? ceil_div(numel - 1, 32) * 32 + 1 : numel | 1;
}

inline BoxPlan make_box(const BoxTensor& tensor, int64_t planes, const int64_t (&places)[3], bool spread) {
  BoxPlan box;
  box.fast = tensor.fast_axis(places);
  box.slow = 3 - box.fast;
  box.planes = static_cast<int>(planes);
  box.length = static_cast<int>(places[box.fast]);
  box.lines = static_cast<int>(places[0] * places[box.slow]);
  box.pitch[box.fast] = 1;
  box.pitch[box.slow] = box.length;
  box.pitch[0] = static_cast<int>(places[1] * places[2]);
  box.plane_pitch = static_cast<int>(plane_pitch_of(places, spread));
  box.along_planes = tensor.along_planes(planes, places);
  box.pairs = tensor.in_pairs(planes, places);
  box.rows = box.lines * (box.along_planes ? box.length : box.planes);
  const int moved = ((box.along_planes ? box.planes : box.length) + 1) / 2;
  box.lanes_log2 = std::min(5, static_cast<int>(std::bit_width(static_cast<unsigned>(std::max(moved - 1, 0)))));
  box.inner = Divider<int32_t>(box.along_planes ? box.length : box.lines);
  box.slow_places = Divider<int32_t>(places[box.slow]);
  return box;
}

// One dimension of a box as it lies in the tensor: its place q has the index first + q * step, and there is an element
// where that is in [0, size).
template <class Index>
struct Side {
  Index first, step, size, stride;

  __device__ __forceinline__ bool has(Index index) const {
    using Unsigned = std::make_unsigned_t<Index>;
    return static_cast<Unsigned>(index) < static_cast<Unsigned>(size);
  }
};

// A box at some place of a tensor.
template <class Index>
struct Box {
  Side<Index> planes, axis[3];
  Index* table;  // of as many numbers as a plane has lines: where they begin, or -1

  // Every thread of the block; a barrier must follow.
  __device__ __forceinline__ void fill_table(const BoxPlan& plan) const {
    const Side<Index> outer = axis[0], inner = plan.slow == 1 ? axis[1] : axis[2];
    for (int line = threadIdx.x; line < plan.lines; line += blockDim.x) {
      int z = line;
      const Index j = inner.first + plan.slow_places.divide(z) * inner.step;
      const Index i = outer.first + z * outer.step;
      table[line] = outer.has(i) && inner.has(j) ? i * outer.stride + j * inner.stride : Index{-1};
    }
  }
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T value[2];
};

// Two neighbours along a row of a box: whether they are in the tensor, the offset of the first there, where the copy of
// the first lies, and whether each of them is of the box at all.
template <class Index>
struct Neighbours {
  bool wanted[2], inside[2];
  Index offset;
  int shared;
};

// Calls move(neighbours, step, pitch) for all pairs of neighbours, kBoxBatch of them at a time, with how far the second
// of each is from the first in the tensor and in the copy.
template <class Index, class Move>
__device__ __forceinline__ void for_each_of_box(const BoxPlan& plan, const Box<Index>& box, Move&& move) {
  const Side<Index> line = plan.fast == 1 ? box.axis[1] : box.axis[2];
  // Along a row, and across rows.
  const Side<Index> along = plan.along_planes ? box.planes : line, across = plan.along_planes ? line : box.planes;
  const int along_pitch = plan.along_planes ? plan.plane_pitch : 1;
  const int across_pitch = plan.along_planes ? 1 : plan.plane_pitch;
  const int places = plan.along_planes ? plan.planes : plan.length;
  // Pairs that are moved in one piece begin at even indices, the first one at or before the first place.
  const int before = plan.pairs ? static_cast<int>(along.first & 1) : 0;
  const int lanes = 1 << plan.lanes_log2, row_step = blockDim.x >> plan.lanes_log2;
#pragma unroll 1
  for (int first = threadIdx.x >> plan.lanes_log2; first < plan.rows; first += kBoxBatch<Index> * row_step) {
    Index start[kBoxBatch<Index>];
    int shared[kBoxBatch<Index>];
#pragma unroll
    for (int i = 0; i < kBoxBatch<Index>; ++i) {
      start[i] = shared[i] = -1;
      const int row = first + i * row_step;
      if (row >= plan.rows) continue;
      int outer = row;
      const int inner = plan.inner.divide(outer);
      const int of_table = plan.along_planes ? outer : inner, other = plan.along_planes ? inner : outer;
      shared[i] = other * across_pitch + of_table * plan.length;
      const Index index = across.first + other * across.step;
      if (across.has(index) && box.table[of_table] >= 0) start[i] = box.table[of_table] + index * across.stride;
    }
#pragma unroll 1
    for (int place = 2 * (threadIdx.x & (lanes - 1)) - before; place < places; place += 2 * lanes) {
      const Index index = along.first + place * along.step;
      const bool has[] = {along.has(index), along.has(index + along.step)};
      Neighbours<Index> neighbours[kBoxBatch<Index>];
#pragma unroll
      for (int i = 0; i < kBoxBatch<Index>; ++i) {
        Neighbours<Index>& n = neighbours[i];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          n.wanted[k] = shared[i] >= 0 && static_cast<unsigned>(place + k) < static_cast<unsigned>(places);
          n.inside[k] = start[i] >= 0 && has[k] && n.wanted[k];
        }
        n.offset = start[i] + index * along.stride;
        n.shared = shared[i] + place * along_pitch;
      }
      move(neighbours, along.step * along.stride, along_pitch);
    }
  }
}

// Copies a box into shared memory, with zeros where the tensor has no element.
template <class Index, class T>
__device__ __forceinline__ void load_box(const T* __restrict__ tensor, const BoxPlan& plan, const Box<Index>& box,
                                         Accumulator<T>* copy) {
  for_each_of_box(plan, box, [&](const Neighbours<Index>(&neighbours)[kBoxBatch<Index>], Index step, int pitch) {
    Pair<T> pair[kBoxBatch<Index>];
#pragma unroll
    for (int i = 0; i < kBoxBatch<Index>; ++i) {
      const Neighbours<Index>& n = neighbours[i];
      pair[i] = {};
      if (plan.pairs) {  // of which one is inside if the other is
        if (n.inside[0] || n.inside[1]) pair[i] = *reinterpret_cast<const Pair<T>*>(tensor + n.offset);
      } else {
        if (n.inside[0]) pair[i].value[0] = tensor[n.offset];
        if (n.inside[1]) pair[i].value[1] = tensor[n.offset + step];
      }
    }
#pragma unroll
    for (int i = 0; i < kBoxBatch<Index>; ++i)
#pragma unroll
      for (int k = 0; k < 2; ++k)
        if (neighbours[i].wanted[k]) copy[neighbours[i].shared + k * pitch] = convert<Accumulator<T>>(pair[i].value[k]);
  });
}

// Copies a box from shared memory, as far as the tensor has elements.
template <class Index, class T>
__device__ __forceinline__ void store_box(const Accumulator<T>* copy, const BoxPlan& plan, const Box<Index>& box,
                                          T* tensor) {
  for_each_of_box(plan, box, [&](const Neighbours<Index>(&neighbours)[kBoxBatch<Index>], Index step, int pitch) {
#pragma unroll
    for (int i = 0; i < kBoxBatch<Index>; ++i) {
      const Neighbours<Index>& n = neighbours[i];
      Pair<T> pair;
#pragma unroll
      for (int k = 0; k < 2; ++k)
        if (n.wanted[k]) pair.value[k] = convert<T>(copy[n.shared + k * pitch]);
      const bool whole = n.inside[0] && n.inside[1];  // if not, the other one is another block's
      if (plan.pairs && whole) {
        *reinterpret_cast<Pair<T>*>(tensor + n.offset) = pair;
      } else {
        if (n.inside[0]) tensor[n.offset] = pair.value[0];
        if (n.inside[1]) tensor[n.offset + step] = pair.value[1];
      }
    }
  });
}

// For __launch_bounds__: room for so many blocks is what leaves all of the numbers that a thread has in registers.
template <class T, class Index>
constexpr int kDirectBlocks = sizeof(T) < 8 && sizeof(Index) < 8   ? 3
                              : sizeof(T) < 8 || sizeof(Index) < 8 ? 2
                                                                   : 1;

// What a block keeps in shared memory before its boxes: the phases of its axes, which three of its threads work out,
// and the table of a box.
template <class Index>
struct Header {
  Phase<Index> phase[3];

  static constexpr int64_t kBytes = 128;  // of this for any Index; the table follows
  static int64_t bytes(int64_t lines) { return kBytes + ceil_div(lines, 2) * 16; }

  __device__ __forceinline__ Index* table() { return reinterpret_cast<Index*>(reinterpret_cast<char*>(this) + kBytes); }

  // A barrier must follow.
  __device__ __forceinline__ void find_phases(const Axis<Index> (&axis)[3], Index residue_z, Index residue_y,
                                              Index residue_x) {
    const int i = threadIdx.x;
    if (i < 3) phase[i] = axis[i].phase(i == 0 ? residue_z : i == 1 ? residue_y : residue_x);
  }
};

}  // namespace unfoldconv::cuda
