// Boxes of a tensor (planes, and places along three axes) and their copies in shared memory, which are of the type that
// sums are in and have x innermost, then y, z and the planes. The threads of a warp go along whichever of these has its
// elements closest together in the tensor, so contiguous and channels_last tensors are moved as they lie.
#pragma once

#include <cstdlib>

#include "depthwise_axis.cuh"
#include "launch.cuh"

namespace unfoldconv::cuda {

enum class Innermost { x, y, plane };

// The plan of a box: how many planes and places, how the copy lies, and how threads share the elements.
struct BoxPlan {
  int planes, size[3];
  int pitch[3], plane_pitch;    // of the copy
  Divider<int32_t> divider[2];  // rows into their three indices
  int rows, lanes_log2;         // a row is what 2^lanes_log2 neighbouring threads move together
  Innermost innermost;
};

// The dimension in which a tensor has the smallest stride, of those in which a box has more than one place.
inline Innermost innermost_of(int64_t planes, const int64_t (&size)[3], int64_t plane_stride,
                              const int64_t (&axis_stride)[3]) {
  const auto closer = [](int64_t a, int64_t b) { return std::abs(a) < std::abs(b); };
  const bool along_y = size[2] == 1 || (size[1] > 1 && closer(axis_stride[1], axis_stride[2]));
  if (planes > 1 && closer(plane_stride, axis_stride[along_y ? 1 : 2])) return Innermost::plane;
  return along_y ? Innermost::y : Innermost::x;
}

// What it costs more to move a box with neighbouring places `step` apart: memory is moved in sectors of 32 bytes, and
// half of one is reckoned to be used by another block before it is gone.
inline double sector_penalty(Innermost innermost, int64_t planes, const int64_t (&size)[3], const int64_t (&step)[3],
                             int64_t element_bytes) {
  const int along = innermost == Innermost::y ? 1 : 2;
  const double neighbours = innermost == Innermost::plane ? planes : static_cast<double>(size[along]) / step[along];
  return std::max(1.0, 16.0 / (neighbours * static_cast<double>(element_bytes)));
}

// The pitch of planes in shared memory. It is odd, so that threads that go along the planes meet no bank conflicts, and
// with `spread` one more than a multiple of the banks, so that those that also go along y in steps of 8 do not.
inline int64_t plane_pitch_of(const int64_t (&size)[3], bool spread) {
  const int64_t numel = size[0] * size[1] * size[2];
  return spread ? ceil_div(numel - 1, 32) * 32 + 1 : numel | 1;
}

inline BoxPlan make_box(int64_t planes, const int64_t (&size)[3], Innermost innermost, bool spread) {
  BoxPlan box;
  box.planes = static_cast<int>(planes);
  std::copy(size, size + 3, box.size);
  box.pitch[2] = 1;
  box.pitch[1] = box.size[2];
  box.pitch[0] = box.size[1] * box.size[2];
  box.plane_pitch = static_cast<int>(plane_pitch_of(size, spread));
  box.innermost = innermost;
  const int64_t along_x[] = {planes, size[0], size[1], size[2]}, along_y[] = {planes, size[0], size[2], size[1]},
                along_planes[] = {size[0], size[1], size[2], planes};
  const auto& order = innermost == Innermost::x ? along_x : innermost == Innermost::y ? along_y : along_planes;
  box.rows = static_cast<int>(order[0] * order[1] * order[2]);
  box.divider[0] = Divider<int32_t>(order[1]);
  box.divider[1] = Divider<int32_t>(order[2]);
  box.lanes_log2 = std::min(5, static_cast<int>(std::bit_width(static_cast<uint64_t>(order[3] - 1))));
  return box;
}

// One dimension of a box as it lies in the tensor: its place q has the index first + q * step, and there is an element
// where that is in [0, size).
template <class Index>
struct Side {
  int places, pitch;
  Index first, step, size, stride;
};

// What a row of a box has found out: where its elements start, and whether there are any.
template <class Index>
struct BoxRow {
  bool inside;
  int shared;
  Index offset;

  __device__ __forceinline__ void enter(const Side<Index>& side, int place) {
    const Index index = side.first + place * side.step;
    shared += place * side.pitch;
    inside &= static_cast<std::make_unsigned_t<Index>>(index) < static_cast<std::make_unsigned_t<Index>>(side.size);
    if (inside) offset += index * side.stride;
  }
};

// Calls move(inside, offset, shared) in batches for every element of a box: whether it is in the tensor, its offset
// there, and where its copy lies. `move` gets kBoxBatch of each at a time, so that their loads overlap; those that
// there is nothing for have a `shared` of -1.
constexpr int kBoxBatch = 4;

template <class Index, class Move>
__device__ __forceinline__ void for_each_of_box(const BoxPlan& box, const Side<Index> (&side)[4], Move&& move) {
  // side: planes, z, y, x; in the order of rows, the innermost last.
  const bool along_planes = box.innermost == Innermost::plane, along_y = box.innermost == Innermost::y;
  const Side<Index> order[] = {along_planes ? side[1] : side[0], along_planes ? side[2] : side[1],
                               along_planes || along_y ? side[3] : side[2],
                               along_planes ? side[0]
                               : along_y    ? side[2]
                                            : side[3]};
  const int lanes = 1 << box.lanes_log2, lane = threadIdx.x & (lanes - 1);
  const int row_step = blockDim.x >> box.lanes_log2;
  for (int first = threadIdx.x >> box.lanes_log2; first < box.rows; first += kBoxBatch * row_step) {
    BoxRow<Index> row[kBoxBatch];
#pragma unroll
    for (int i = 0; i < kBoxBatch; ++i) {
      row[i] = {first + i * row_step < box.rows, 0, 0};
      if (!row[i].inside) {
        row[i].shared = -1;
        continue;
      }
      int rest = first + i * row_step;
      const int third = box.divider[1].divide(rest), second = box.divider[0].divide(rest);
      row[i].enter(order[0], rest);
      row[i].enter(order[1], second);
      row[i].enter(order[2], third);
    }
    for (int place = lane; place < order[3].places; place += lanes) {
      bool inside[kBoxBatch];
      int shared[kBoxBatch];
      Index offset[kBoxBatch];
#pragma unroll
      for (int i = 0; i < kBoxBatch; ++i) {
        BoxRow<Index> element = row[i];
        if (element.shared >= 0) element.enter(order[3], place);
        inside[i] = element.inside;
        shared[i] = element.shared;
        offset[i] = element.offset;
      }
      move(inside, offset, shared);
    }
  }
}

// Copies a box into shared memory, with zeros where the tensor has no element.
template <class Index, class T>
__device__ __forceinline__ void load_box(const T* __restrict__ tensor, const BoxPlan& box, const Side<Index> (&side)[4],
                                         Accumulator<T>* copy) {
  for_each_of_box(
      box, side, [&](const bool (&inside)[kBoxBatch], const Index(&offset)[kBoxBatch], const int (&shared)[kBoxBatch]) {
        T value[kBoxBatch];
#pragma unroll
        for (int i = 0; i < kBoxBatch; ++i) value[i] = inside[i] ? tensor[offset[i]] : T(0.f);
#pragma unroll
        for (int i = 0; i < kBoxBatch; ++i)
          if (shared[i] >= 0) copy[shared[i]] = convert<Accumulator<T>>(value[i]);
      });
}

// Copies a box from shared memory, as far as the tensor has elements.
template <class Index, class T>
__device__ __forceinline__ void store_box(const Accumulator<T>* copy, const BoxPlan& box, const Side<Index> (&side)[4],
                                          T* tensor) {
  for_each_of_box(
      box, side, [&](const bool (&inside)[kBoxBatch], const Index(&offset)[kBoxBatch], const int (&shared)[kBoxBatch]) {
#pragma unroll
        for (int i = 0; i < kBoxBatch; ++i)
          if (inside[i]) tensor[offset[i]] = convert<T>(copy[shared[i]]);
      });
}

// The places of a tile along one axis: of the source that it reads, and of the results. Tile `tile` has `results` of
// the phase's results.
template <class Index>
__device__ __forceinline__ Side<Index> source_side(const BoxPlan& box, int axis, const Axis<Index>& of,
                                                   const Phase<Index>& phase, Index first_result, Index stride) {
  return {box.size[axis], box.pitch[axis], phase.base + first_result * of.advance * of.source_step,
          of.source_step, of.source_size,  stride};
}

template <class Index>
__device__ __forceinline__ Side<Index> result_side(const BoxPlan& box, int axis, const Axis<Index>& of,
                                                   const Phase<Index>& phase, Index first_result, Index stride) {
  return {box.size[axis], box.pitch[axis], phase.first + first_result * of.result_step,
          of.result_step, of.result_size,  stride};
}

template <class Index>
__device__ __forceinline__ Side<Index> plane_side(const BoxPlan& box, Index planes, Index stride) {
  return {box.planes, box.plane_pitch, 0, 1, planes, stride};
}

}  // namespace unfoldconv::cuda
