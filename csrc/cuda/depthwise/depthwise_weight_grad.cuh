// The weight gradient by direct sums, for one or a few channels per group (depthwise_launch.h says of what).
//
//   result[g, o, i, tap] = sum over n, positions of gradient[n, g, o, position] * image[n, g, i, place of the tap]
//
// A block goes over tiles of positions of some planes. It copies what a tile has of the gradient and what its windows
// have of the image into shared memory, in the type that sums are in. A thread has a role and a slice: the role is a
// pair of planes, a z and an x of a tap and `Taps` neighbouring taps along y, whose sums it keeps in registers over all
// tiles; the slice is the columns of positions that it adds up, in strips of kStrip. At the end the slices are added in
// order. Where that makes too few blocks to fill a GPU, the tiles are split, each split writes its sums to a workspace
// of bounded size, and a second kernel adds these, in an order that follows from the number of splits. That follows
// from the problem, so nothing depends on which block or thread comes first.
//
// Floors, besides bytes / bandwidth: one FMA for each position and tap, of which a multiprocessor does 128 in a clock,
// and 2 * kStrip + K - 1 numbers from shared memory, 32 in a clock, for kStrip * K of them, K being the taps of a role.
// With 8 taps that is 23 numbers for 64 FMAs: the former are the bound, by 0.7 to 0.5 clocks.
#pragma once

#include "cuda/depthwise/depthwise_box.cuh"
#include "cuda/depthwise/depthwise_tiles.cuh"
#include "cuda/shared/split_sums.cuh"

namespace unfoldconv::cuda {
namespace {

constexpr int kMostTaps = 8;  // of a role

// Indices within a block.
struct Work {
  BoxPlan image, gradient;
  int header_bytes, gradient_at;   // before the image; where the gradient lies behind it
  int columns, roles, slices;      // of a tile, and of a block; a column is of kStrip positions
  int role_count, taps;            // in all; of a role, along y
  bool slices_first;               // neighbouring threads have neighbouring slices
  int units, outputs, inputs;      // as in DirectTile
  int size[3];                     // positions of a tile
  Divider<int32_t> thread;         // into slice and role
  Divider<int32_t> role_taps;      // taps
  Divider<int32_t> width, strips;  // columns of a tile along x and y
  Divider<int32_t> row_taps, pieces, depth_taps, input_count, output_count;  // of a role
};

template <class Index>
struct Problem {
  Axis<Index> axis[3];
  Unraveler<5, Index> jobs;   // units, outputs, inputs, roles, splits
  Unraveler<7, Index> tiles;  // batch, tiles of z, y, x, phases of z, y, x
  Index job_count, tile_count, splits;
  int64_t image_batch, gradient_batch;  // strides
  Index image_channel, image_stride[3], gradient_channel, gradient_stride[3];
  Index groups, outputs, inputs;
  Index tap_stride[3], taps, numel;  // of the result
};

// The sums that a thread is about.
struct Role {
  int x, first_y, z, input, output, unit;

  __device__ __forceinline__ Role(const Work& work, int role) {
    x = work.row_taps.divide(role);
    first_y = work.pieces.divide(role) * work.taps;
    z = work.depth_taps.divide(role);
    input = work.input_count.divide(role);
    output = work.output_count.divide(role);
    unit = role;
  }
};

// Adds the products of the first `rows` positions of a strip with the elements that `Taps` taps read for them, which
// are `pitch` apart from tap to tap and `step` from position to position. An `Advance` of 1 says that these are the
// same.
template <int Advance, int Taps, class A>
__device__ __forceinline__ void add_strip(const A* gradient, int gradient_pitch, const A* column, int pitch, int step,
                                          int rows, A (&sum)[kMostTaps]) {
  A factor[kStrip];
#pragma unroll
  for (int v = 0; v < kStrip; ++v) factor[v] = gradient[v * gradient_pitch];
  if constexpr (Advance == 1) {
    A element[kStrip + Taps - 1];
#pragma unroll
    for (int i = 0; i < kStrip + Taps - 1; ++i) element[i] = column[i * pitch];
#pragma unroll
    for (int v = 0; v < kStrip; ++v)
      if (v < rows)  // beyond the last position there is no product, not even with zero: an element may be infinite
#pragma unroll
        for (int k = 0; k < Taps; ++k) sum[k] += factor[v] * element[v + k];
  } else {
#pragma unroll
    for (int v = 0; v < kStrip; ++v)
      if (v < rows)
#pragma unroll
        for (int k = 0; k < Taps; ++k) sum[k] += factor[v] * column[v * step + k * pitch];
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads, kDirectBlocks<T, Index>)
    sum_tiles(const T* __restrict__ image, const T* __restrict__ gradient, T* result, Accumulator<T>* partial,
              const __grid_constant__ Problem<Index> problem, const __grid_constant__ Work work) {
  using A = Accumulator<T>;
  auto& header = *dynamic_shared<Header<Index>>();
  A* const shared = reinterpret_cast<A*>(dynamic_shared<char>() + work.header_bytes);
  int role_of_block = threadIdx.x, slice = 0;
  if (work.slices_first) {
    slice = work.thread.divide(role_of_block);
  } else {
    slice = role_of_block;
    role_of_block = work.thread.divide(slice);
  }

  for_each_tile(problem.job_count, [&](Index job) {
    Index at[5];
    problem.jobs(job, at);
    const Index first_group = at[0] * work.units, first_output = at[1] * work.outputs,
                first_input = at[2] * work.inputs;
    const Index groups = min(static_cast<Index>(work.units), problem.groups - first_group);
    const Index outputs = min(static_cast<Index>(work.outputs), problem.outputs - first_output);
    const Index inputs = min(static_cast<Index>(work.inputs), problem.inputs - first_input);
    const int first_role = static_cast<int>(at[3]) * work.roles;
    const Role role(work, min(first_role + role_of_block, work.role_count - 1));
    const bool busy = slice < work.slices && role_of_block < work.roles && first_role + role_of_block < work.role_count;

    A sum[kMostTaps] = {};
    for (Index tile = at[4]; tile < problem.tile_count; tile += problem.splits) {
      Index part[7];
      problem.tiles(tile, part);
      header.find_phases(problem.axis, part[4], part[5], part[6]);
      __syncthreads();
      Box<Index> image_box, gradient_box;
      image_box.table = header.table();
      gradient_box.table = header.table() + work.image.lines;
      image_box.planes = {0, 1, groups * inputs, problem.image_channel};
      gradient_box.planes = {0, 1, groups * outputs, problem.gradient_channel};
      int count[3];  // positions of this tile along each axis
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const Axis<Index>& axis = problem.axis[i];
        const Index first = part[1 + i] * work.size[i], position = header.phase[i].first + first * axis.result_step;
        image_box.axis[i] = {header.phase[i].base + first * axis.advance * axis.source_step, axis.source_step,
                             axis.source_size, problem.image_stride[i]};
        gradient_box.axis[i] = {position, axis.result_step, axis.result_size, problem.gradient_stride[i]};
        const Index left = (axis.result_size - header.phase[i].first + axis.result_step - 1) / axis.result_step - first;
        count[i] = static_cast<int>(min(left, static_cast<Index>(work.size[i])));
      }
      image_box.fill_table(work.image);
      gradient_box.fill_table(work.gradient);
      __syncthreads();
      load_box(image + static_cast<int64_t>(part[0]) * problem.image_batch +
                   (first_group * problem.inputs + first_input) * problem.image_channel,
               work.image, image_box, shared);
      load_box(gradient + static_cast<int64_t>(part[0]) * problem.gradient_batch +
                   (first_group * problem.outputs + first_output) * problem.gradient_channel,
               work.gradient, gradient_box, shared + work.gradient_at);
      __syncthreads();
      if (!busy) continue;
      const A* const from = shared + (role.unit * work.inputs + role.input) * work.image.plane_pitch +
                            role.z * work.image.pitch[0] + role.first_y * work.image.pitch[1] +
                            role.x * work.image.pitch[2];
      const A* const factors =
          shared + work.gradient_at + (role.unit * work.outputs + role.output) * work.gradient.plane_pitch;
      for (int column = slice; column < work.columns; column += work.slices) {
        int z = column;
        const int x = work.width.divide(z), y = work.strips.divide(z) * kStrip;
        if (x >= count[2] || y >= count[1] || z >= count[0]) continue;
        const int advance = static_cast<int>(problem.axis[1].advance);
        const A* const factor =
            factors + z * work.gradient.pitch[0] + y * work.gradient.pitch[1] + x * work.gradient.pitch[2];
        const A* const element = from + z * static_cast<int>(problem.axis[0].advance) * work.image.pitch[0] +
                                 y * advance * work.image.pitch[1] +
                                 x * static_cast<int>(problem.axis[2].advance) * work.image.pitch[2];
        const auto add = [&]<int Advance, int Taps>() {
          add_strip<Advance, Taps>(factor, work.gradient.pitch[1], element, work.image.pitch[1],
                                   advance * work.image.pitch[1], count[1] - y, sum);
        };
        if (advance != 1)
          add.template operator()<0, 3>();
        else if (work.taps == 3)
          add.template operator()<1, 3>();
        else if (work.taps == 5)
          add.template operator()<1, 5>();
        else
          add.template operator()<1, 8>();
      }
    }

    __syncthreads();  // the sums take the place of the tile
    if (busy) {
#pragma unroll
      for (int k = 0; k < kMostTaps; ++k)
        if (k < work.taps) shared[(slice * work.roles + role_of_block) * work.taps + k] = sum[k];
    }
    __syncthreads();
    for (int item = threadIdx.x; item < work.roles * work.taps; item += blockDim.x) {
      int role_of_item = item;
      const int tap = work.role_taps.divide(role_of_item);
      if (first_role + role_of_item >= work.role_count) continue;
      const Role of(work, first_role + role_of_item);
      const int y = of.first_y + tap;
      if (of.unit >= groups || of.output >= outputs || of.input >= inputs || y >= problem.axis[1].taps) continue;
      A total = shared[item];
      for (int i = 1; i < work.slices; ++i) total += shared[i * work.roles * work.taps + item];
      const Index plane = ((first_group + of.unit) * problem.outputs + first_output + of.output) * problem.inputs +
                          first_input + of.input;
      const Index offset = plane * problem.taps + of.z * problem.tap_stride[0] + y * problem.tap_stride[1] +
                           of.x * problem.tap_stride[2];
      if (partial == nullptr)
        result[offset] = convert<T>(total);
      else
        partial[static_cast<int64_t>(at[4]) * problem.numel + offset] = total;
    }
  });
}

}  // namespace
}  // namespace unfoldconv::cuda
