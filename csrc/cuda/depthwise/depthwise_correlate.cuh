// Forward and input gradient by direct sums, for one or a few channels per group (depthwise_launch.h says of what).
//
//   result[n, g, o, i] = bias[g, o] + sum over c, taps of source[n, g, c, p] * weight[g, o, c, t]
//   where i, p and t are those of depthwise_axis.cuh, along each axis
//
// A block computes a tile of results of some planes. It copies what the tile reads of the source into shared memory, in
// the type that sums are in and with zeros outside of the source, and the weights of its planes beside it. A thread
// holds a strip of kStrip results along y: for each z and x of a tap it walks once down a column of the source and uses
// each element for every tap along y that meets it, from registers. The finished tile goes through shared memory again,
// so that reading and writing each follow the format of their tensor. The terms of every sum are in the same order,
// channels, then taps along z, x and y, whatever the tile; every result is written once, by one thread.
//
// Floors, besides bytes / bandwidth: a multiprocessor does 128 FMAs in a clock and gets 32 numbers from shared memory.
// A result takes as many FMAs as there are taps, and a column of K taps kStrip + K - 1 numbers for kStrip * K of them
// (10 for 24 with 3 taps, 14 for 56 with 7, and 73 for 248 with 31, which are done in pieces), with the weights, of
// which neighbouring threads read the same, a quarter of K more. So 3 x 3 taps take 0.1 clocks a result, less than its
// 16-bit elements take to come and go, and from about 5 x 5 on the FMAs are the bound: 31 x 31 taps take 7.5 clocks.
// Only Toeplitz blocks on tensor cores could go below that; these kernels do not.
#pragma once

#include "cuda/depthwise/depthwise_box.cuh"
#include "cuda/depthwise/depthwise_tiles.cuh"

namespace unfoldconv::cuda {
namespace {

// Indices within a block, of tiles and threads.
struct Work {
  BoxPlan source, result;
  int units, outputs, inputs;             // as in DirectTile
  int most_taps[3];                       // of a phase
  int tap_pitch, row_pitch;               // weights in shared memory: of one x, and of one plane of the result
  int header_bytes, image_at;             // before the weights; where the image begins behind them
  int threads, size[3];                   // that have a strip; results of a tile along each axis
  Divider<int32_t> width, strips, depth;  // of a tile: results along x, strips along y, results along z
  Divider<int32_t> plane_count, output_count, input_count, taps[3];
  bool planes_first;  // neighbouring threads have neighbouring planes
};

template <class Index>
struct Problem {
  Axis<Index> axis[3];
  Unraveler<9, Index> blocks;  // batch, units, outputs, tiles of z, y, x, phases of z, y, x
  Index count;
  int64_t source_batch, result_batch;  // strides
  Index source_channel, source_stride[3], result_channel, result_stride[3];
  Index weight_plane[3], weight_stride[3];  // group, result, source
  Index groups, outputs, inputs;
};

// Neighbours in shared memory, as wide as it gives them at once.
template <class A>
struct alignas(16) Four {
  A value[4];
};

template <int Taps, class A>
__device__ __forceinline__ void load_weights(const A* from, A (&weight)[Taps]) {
  if constexpr (Taps < 3) {
#pragma unroll
    for (int k = 0; k < Taps; ++k) weight[k] = from[k];
  } else {
#pragma unroll
    for (int k = 0; k < Taps; k += 4) {
      const Four<A> four = *reinterpret_cast<const Four<A>*>(from + k);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (k + i < Taps) weight[k + i] = four.value[i];
    }
  }
}

// Adds the products with `Taps` taps along y, of which the first reads `column`, whose neighbours are `pitch` apart.
template <int Advance, int Taps, class A>
__device__ __forceinline__ void add_taps(const A* column, int pitch, const A* weights, A (&sum)[kStrip]) {
  constexpr int length = (kStrip - 1) * Advance + Taps;
  A element[length], weight[Taps];
  load_weights(weights, weight);
#pragma unroll
  for (int i = 0; i < length; ++i) element[i] = column[i * pitch];
#pragma unroll
  for (int k = 0; k < Taps; ++k)
#pragma unroll
    for (int v = 0; v < kStrip; ++v) sum[v] += element[v * Advance + k] * weight[k];
}

// The same with any number of taps, in pieces: the common ones whole, others of 8, 4, 2 and 1.
template <int Advance, class A>
__device__ __forceinline__ void add_column(const A* column, int pitch, const A* weights, int taps, A (&sum)[kStrip]) {
  if (taps == 3) return add_taps<Advance, 3>(column, pitch, weights, sum);
  if constexpr (Advance == 1) {
    if (taps == 5) return add_taps<Advance, 5>(column, pitch, weights, sum);
    if (taps == 7) return add_taps<Advance, 7>(column, pitch, weights, sum);
  }
  int k = 0;
  for (; k + 8 <= taps; k += 8) add_taps<Advance, 8>(column + k * pitch, pitch, weights + k, sum);
  if (taps & 4) add_taps<Advance, 4>(column + k * pitch, pitch, weights + k, sum), k += 4;
  if (taps & 2) add_taps<Advance, 2>(column + k * pitch, pitch, weights + k, sum), k += 2;
  if (taps & 1) add_taps<Advance, 1>(column + k * pitch, pitch, weights + k, sum);
}

// The same for longer strides, with which few elements are used twice.
template <class A>
__device__ __forceinline__ void add_column_far(const A* column, int pitch, int advance, const A* weights, int taps,
                                               A (&sum)[kStrip]) {
#pragma unroll 1
  for (int k = 0; k < taps; ++k) {
    const A weight = weights[k];
#pragma unroll
    for (int v = 0; v < kStrip; ++v) sum[v] += column[(v * advance + k) * pitch] * weight;
  }
}

// Copies the weights of some planes of the result, for `inputs` channels of the source from `first_input` on.
template <class Index, class T>
__device__ __forceinline__ void load_weights_of(const T* __restrict__ weight, const Problem<Index>& problem,
                                                const Work& work, const Phase<Index> (&phase)[3], Index first_group,
                                                Index first_output, Index first_input, Accumulator<T>* copy) {
  const int numel = work.units * work.outputs * work.inputs * work.most_taps[0] * work.most_taps[1] * work.most_taps[2];
  for (int item = threadIdx.x; item < numel; item += blockDim.x) {
    int rest = item;
    const int x = work.taps[2].divide(rest), y = work.taps[1].divide(rest), z = work.taps[0].divide(rest);
    const int input = work.input_count.divide(rest), output = work.output_count.divide(rest), unit = rest;
    const Index index[] = {first_group + unit, first_output + output, first_input + input};
    const bool inside = index[0] < problem.groups && index[1] < problem.outputs && index[2] < problem.inputs;
    const int tap[] = {z, y, x};
    Index offset = 0;
    bool reached = inside;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) reached &= tap[axis] < phase[axis].taps;
    if (!reached) continue;  // nothing reads it
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      offset += index[axis] * problem.weight_plane[axis] +
                (phase[axis].tap + tap[axis] * phase[axis].tap_step) * problem.weight_stride[axis];
    copy[(unit * work.outputs + output) * work.row_pitch +
         ((input * work.most_taps[0] + z) * work.most_taps[2] + x) * work.tap_pitch + y] =
        convert<Accumulator<T>>(weight[offset]);
  }
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads, kDirectBlocks<T, Index>)
    correlate(const T* __restrict__ source, const T* __restrict__ weight, const T* __restrict__ bias, T* result,
              const __grid_constant__ Problem<Index> problem, const __grid_constant__ Work work) {
  using A = Accumulator<T>;
  constexpr bool fast = sizeof(Index) == 4;  // 64-bit indices are rare, and kernels large
  auto& header = *dynamic_shared<Header<Index>>();
  A* const weights = reinterpret_cast<A*>(dynamic_shared<char>() + work.header_bytes);
  A* const image = weights + work.image_at;

  // This thread's strip.
  int rest = threadIdx.x, plane = 0;
  if (work.planes_first) plane = work.plane_count.divide(rest);
  const int x = work.width.divide(rest), strip = work.strips.divide(rest), z = work.depth.divide(rest);
  if (!work.planes_first) plane = rest;
  const int unit = work.output_count.quotient(plane);
  const bool has_strip = static_cast<int>(threadIdx.x) < work.threads;
  const int advance = static_cast<int>(problem.axis[1].advance);
  const int corner = z * static_cast<int>(problem.axis[0].advance) * work.source.pitch[0] +
                     strip * kStrip * advance * work.source.pitch[1] +
                     x * static_cast<int>(problem.axis[2].advance) * work.source.pitch[2];

  for_each_tile(problem.count, [&](Index block) {
    Index at[9];
    problem.blocks(block, at);
    const Index first_group = at[1] * work.units, first_output = at[2] * work.outputs;
    const Index groups = min(static_cast<Index>(work.units), problem.groups - first_group);
    header.find_phases(problem.axis, at[6], at[7], at[8]);
    __syncthreads();
    Box<Index> box;
    box.table = header.table();
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const Axis<Index>& axis = problem.axis[i];
      box.axis[i] = {header.phase[i].base + at[3 + i] * work.size[i] * axis.advance * axis.source_step,
                     axis.source_step, axis.source_size, problem.source_stride[i]};
    }
    box.fill_table(work.source);

    A sum[kStrip] = {};
    for (Index first_input = 0; first_input < problem.inputs; first_input += work.inputs) {
      const Index inputs = min(static_cast<Index>(work.inputs), problem.inputs - first_input);
      __syncthreads();  // the table is there, and nobody reads the image before
      load_weights_of(weight, problem, work, header.phase, first_group, first_output, first_input, weights);
      box.planes = {0, 1, groups * inputs, problem.source_channel};
      load_box(source + static_cast<int64_t>(at[0]) * problem.source_batch +
                   (first_group * problem.inputs + first_input) * problem.source_channel,
               work.source, box, image);
      __syncthreads();
      if (!has_strip || unit >= groups) continue;
      const int taps[] = {static_cast<int>(header.phase[0].taps), static_cast<int>(header.phase[1].taps),
                          static_cast<int>(header.phase[2].taps)};
      for (int input = 0; input < inputs; ++input) {
        const A* const from = image + (unit * work.inputs + input) * work.source.plane_pitch + corner;
        const A* row =
            weights + plane * work.row_pitch + input * work.most_taps[0] * work.most_taps[2] * work.tap_pitch;
#pragma unroll 1
        for (int tap_z = 0; tap_z < taps[0]; ++tap_z, row += work.most_taps[2] * work.tap_pitch)
#pragma unroll 1
          for (int tap_x = 0; tap_x < taps[2]; ++tap_x) {
            const A* const column = from + tap_z * work.source.pitch[0] + tap_x * work.source.pitch[2];
            const A* const weights_of_column = row + tap_x * work.tap_pitch;
            const int pitch = work.source.pitch[1];
            if (fast && advance == 1)
              add_column<1>(column, pitch, weights_of_column, taps[1], sum);
            else if (fast && advance == 2)
              add_column<2>(column, pitch, weights_of_column, taps[1], sum);
            else
              add_column_far(column, pitch, advance, weights_of_column, taps[1], sum);
          }
      }
    }

    __syncthreads();  // the results take the place of the weights and the image, and their table that of the source
    const Index channel = first_group * problem.outputs + first_output;
    const Index planes = problem.outputs > work.outputs
                             ? min(static_cast<Index>(work.outputs), problem.outputs - first_output)
                             : groups * problem.outputs;
    if (has_strip && plane < planes) {
      const A shift = bias == nullptr ? A{} : convert<A>(bias[channel + plane]);
      A* const to = weights + plane * work.result.plane_pitch + z * work.result.pitch[0] +
                    strip * kStrip * work.result.pitch[1] + x * work.result.pitch[2];
#pragma unroll
      for (int v = 0; v < kStrip; ++v) to[v * work.result.pitch[1]] = sum[v] + shift;
    }
    box.planes = {0, 1, planes, problem.result_channel};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const Axis<Index>& axis = problem.axis[i];
      box.axis[i] = {header.phase[i].first + at[3 + i] * work.size[i] * axis.result_step, axis.result_step,
                     axis.result_size, problem.result_stride[i]};
    }
    box.fill_table(work.result);
    __syncthreads();
    store_box(weights, work.result, box,
              result + static_cast<int64_t>(at[0]) * problem.result_batch + channel * problem.result_channel);
  });
}

}  // namespace
}  // namespace unfoldconv::cuda
