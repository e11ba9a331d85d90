// Forward and input gradient by direct sums, for one or a few channels per group (depthwise.h says of what).
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
// Floors: bytes / bandwidth, and the multiplications without tensor cores. Per result and tap there is 1 FMA; shared
// memory gives an element for every kStrip * K / (kStrip + K - 1) of them (8.3 bytes a clock would be needed for K = 3
// and 4 for K = 31, of 128 that a multiprocessor has), so from K = 7 on the FMAs are the bound: for one output per
// clock and lane, K^2 / 128 clocks of a multiprocessor, 31 x 31 taps on 56 x 56 x 128 x 64 results 0.74 ms at 67
// TFLOP/s. Toeplitz blocks on tensor cores would go below that; these kernels do not.
#include "depthwise.h"
#include "depthwise_box.cuh"
#include "depthwise_tiles.h"
#include "shared.cuh"

namespace unfoldconv::cuda {
namespace {

// --- kernel ----------------------------------------------------------------------------------------------------------

// Indices within a block, of tiles and threads.
struct Work {
  BoxPlan source, result;
  int units, outputs, inputs;        // as in DirectTile
  int most_taps[3];                  // of a phase
  int tap_pitch, row_pitch;          // weights in shared memory: of one x, and of one plane of the result
  int image_at, threads;             // where the image begins in it; how many threads have a strip
  Divider<int32_t> tile[3], strips;  // results of a tile along each axis; strips along y
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

// Some numbers that adjoin in shared memory, as wide as it gives them at once.
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

// The same with as many taps as there are: `Taps` if that is known, in pieces of 8, 4, 2 and 1 otherwise. An `Advance`
// of 0 is one that is not known, with which no element is used twice.
template <int Advance, int Taps, class A>
__device__ __forceinline__ void add_column(const A* column, int pitch, int advance, const A* weights, int taps,
                                           A (&sum)[kStrip]) {
  if constexpr (Advance == 0) {
    for (int k = 0; k < taps; ++k) {
      const A weight = weights[k];
#pragma unroll
      for (int v = 0; v < kStrip; ++v) sum[v] += column[(v * advance + k) * pitch] * weight;
    }
  } else if constexpr (Taps > 0) {
    add_taps<Advance, Taps>(column, pitch, weights, sum);
  } else {
    int k = 0;
    for (; k + 8 <= taps; k += 8) add_taps<Advance, 8>(column + k * pitch, pitch, weights + k, sum);
    if (taps & 4) add_taps<Advance, 4>(column + k * pitch, pitch, weights + k, sum), k += 4;
    if (taps & 2) add_taps<Advance, 2>(column + k * pitch, pitch, weights + k, sum), k += 2;
    if (taps & 1) add_taps<Advance, 1>(column + k * pitch, pitch, weights + k, sum);
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

template <class T, class Index, int Advance, int Taps>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Index>)
    correlate(const T* __restrict__ source, const T* __restrict__ weight, const T* __restrict__ bias, T* result,
              const __grid_constant__ Problem<Index> problem, const __grid_constant__ Work work) {
  using A = Accumulator<T>;
  A* const weights = dynamic_shared<A>();
  A* const image = weights + work.image_at;

  // This thread's strip.
  int rest = threadIdx.x, plane = 0;
  if (work.planes_first) plane = work.plane_count.divide(rest);
  const int x = work.tile[2].divide(rest), strip = work.strips.divide(rest), z = work.tile[0].divide(rest);
  if (!work.planes_first) plane = rest;
  const int unit = work.output_count.quotient(plane);
  const bool has_strip = static_cast<int>(threadIdx.x) < work.threads;

  for_each_tile(problem.count, [&](Index block) {
    Index at[9];
    problem.blocks(block, at);
    const Index first_group = at[1] * work.units, first_output = at[2] * work.outputs;
    const Index first[] = {at[3] * work.tile[0].divisor(), at[4] * work.tile[1].divisor(),
                           at[5] * work.tile[2].divisor()};
    Phase<Index> phase[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) phase[axis] = problem.axis[axis].phase(at[6 + axis]);
    const Index groups = min(static_cast<Index>(work.units), problem.groups - first_group);

    A sum[kStrip] = {};
    for (Index first_input = 0; first_input < problem.inputs; first_input += work.inputs) {
      const Index inputs = min(static_cast<Index>(work.inputs), problem.inputs - first_input);
      __syncthreads();  // whoever still reads what lay here before
      {
        const Side<Index> sides[] = {
            plane_side(work.source, groups * inputs, problem.source_channel),
            source_side(work.source, 0, problem.axis[0], phase[0], first[0], problem.source_stride[0]),
            source_side(work.source, 1, problem.axis[1], phase[1], first[1], problem.source_stride[1]),
            source_side(work.source, 2, problem.axis[2], phase[2], first[2], problem.source_stride[2])};
        load_box(source + static_cast<int64_t>(at[0]) * problem.source_batch +
                     (first_group * problem.inputs + first_input) * problem.source_channel,
                 work.source, sides, image);
      }
      load_weights_of(weight, problem, work, phase, first_group, first_output, first_input, weights);
      __syncthreads();
      if (!has_strip || unit >= groups) continue;
      for (int input = 0; input < inputs; ++input) {
        const A* const corner = image + (unit * work.inputs + input) * work.source.plane_pitch +
                                z * static_cast<int>(problem.axis[0].advance) * work.source.pitch[0] +
                                strip * kStrip * static_cast<int>(problem.axis[1].advance) * work.source.pitch[1] +
                                x * static_cast<int>(problem.axis[2].advance);
        const A* row =
            weights + plane * work.row_pitch + input * work.most_taps[0] * work.most_taps[2] * work.tap_pitch;
        for (int tap_z = 0; tap_z < phase[0].taps; ++tap_z, row += work.most_taps[2] * work.tap_pitch)
          for (int tap_x = 0; tap_x < phase[2].taps; ++tap_x)
            add_column<Advance, Taps>(corner + tap_z * work.source.pitch[0] + tap_x, work.source.pitch[1],
                                      static_cast<int>(problem.axis[1].advance), row + tap_x * work.tap_pitch,
                                      static_cast<int>(phase[1].taps), sum);
      }
    }

    __syncthreads();  // the results take the place of the weights and the image
    const Index channel = first_group * problem.outputs + first_output;
    const Index planes = problem.outputs > work.outputs
                             ? min(static_cast<Index>(work.outputs), problem.outputs - first_output)
                             : groups * problem.outputs;
    if (has_strip && plane < planes) {
      const A shift = bias == nullptr ? A{} : convert<A>(bias[channel + plane]);
      A* const to = weights + plane * work.result.plane_pitch + z * work.result.pitch[0] +
                    strip * kStrip * work.result.pitch[1] + x;
#pragma unroll
      for (int v = 0; v < kStrip; ++v) to[v * work.result.pitch[1]] = sum[v] + shift;
    }
    __syncthreads();
    const Side<Index> sides[] = {
        plane_side(work.result, planes, problem.result_channel),
        result_side(work.result, 0, problem.axis[0], phase[0], first[0], problem.result_stride[0]),
        result_side(work.result, 1, problem.axis[1], phase[1], first[1], problem.result_stride[1]),
        result_side(work.result, 2, problem.axis[2], phase[2], first[2], problem.result_stride[2])};
    store_box(weights, work.result, sides,
              result + static_cast<int64_t>(at[0]) * problem.result_batch + channel * problem.result_channel);
  });
}

// --- plan ------------------------------------------------------------------------------------------------------------

// Axes in the order in which the kernel has them.
struct Oriented {
  Axis<int64_t> axis[3];
  int64_t source_stride[3], weight_stride[3], result_stride[3];
};

// y is the axis of strips, so a line of results lies along it.
Oriented oriented(const DirectCorrelation& problem) {
  Oriented result;
  for (int i = 0; i < 3; ++i) {
    result.axis[i] = make_axis(problem.geometry, i, problem.backward);
    result.source_stride[i] = problem.source.layout.axis_stride[i];
    result.weight_stride[i] = problem.weight.layout.axis_stride[i];
    result.result_stride[i] = problem.result.layout.axis_stride[i];
  }
  if (result.axis[1].most_results() == 1) {
    std::swap(result.axis[1], result.axis[2]);
    std::swap(result.source_stride[1], result.source_stride[2]);
    std::swap(result.weight_stride[1], result.weight_stride[2]);
    std::swap(result.result_stride[1], result.result_stride[2]);
  }
  return result;
}

// What a block with some tile has in shared memory.
struct Extent {
  int64_t read[3], most_taps[3];
  int64_t sources, planes, threads;
  int64_t source_numel, result_numel, row_pitch, tap_pitch;  // numbers in shared memory
  bool planes_first;
  Innermost source_innermost, result_innermost;

  Extent(const DirectCorrelation& problem, const Oriented& of, const DirectTile& tile)
      : sources(tile.units * tile.inputs),
        planes(tile.units * tile.outputs),
        threads(planes * tile.strips()),
        planes_first(tile.size[2] == 1) {
    for (int axis = 0; axis < 3; ++axis) {
      most_taps[axis] = std::max<int64_t>(1, of.axis[axis].most_taps());
      // What does not fit anyway is not multiplied out.
      read[axis] = std::min((tile.size[axis] - 1) * of.axis[axis].advance + most_taps[axis], kSharedBytes);
    }
    tap_pitch = ceil_div(most_taps[1], 4) * 4;
    // In fours, an odd number: planes that neighbouring threads have then start in different banks.
    row_pitch = ((tile.inputs * most_taps[0] * most_taps[2] * tap_pitch / 4) | 1) * 4;
    source_numel = sources * plane_pitch_of(read, planes_first);
    result_numel = planes * plane_pitch_of(tile.size, planes_first);
    source_innermost = innermost_of(sources, read, problem.source.layout.stride[2], of.source_stride);
    result_innermost = innermost_of(planes, tile.size, problem.result.layout.stride[2], of.result_stride);
  }

  int64_t shared_numel() const { return std::max(planes * row_pitch + source_numel, result_numel); }
  int64_t tap_numel() const { return most_taps[0] * most_taps[1] * most_taps[2]; }

  Work work(const DirectTile& tile) const {
    Work work;
    work.units = static_cast<int>(tile.units);
    work.outputs = static_cast<int>(tile.outputs), work.inputs = static_cast<int>(tile.inputs);
    work.planes_first = planes_first;
    work.source = make_box(sources, read, source_innermost, planes_first);
    work.result = make_box(planes, tile.size, result_innermost, planes_first);
    std::copy(most_taps, most_taps + 3, work.most_taps);
    work.tap_pitch = static_cast<int>(tap_pitch), work.row_pitch = static_cast<int>(row_pitch);
    work.image_at = static_cast<int>(planes * row_pitch);
    work.threads = static_cast<int>(threads);
    for (int axis = 0; axis < 3; ++axis) {
      work.tile[axis] = Divider<int32_t>(tile.size[axis]);
      work.taps[axis] = Divider<int32_t>(most_taps[axis]);
    }
    work.strips = Divider<int32_t>(tile.size[1] / kStrip);
    work.plane_count = Divider<int32_t>(planes);
    work.output_count = Divider<int32_t>(tile.outputs);
    work.input_count = Divider<int32_t>(tile.inputs);
    return work;
  }
};

struct Plan : DirectPlan {
  DirectTile tile;
  Oriented of;
  int64_t counts[9];  // as Problem::blocks
};

Plan make_plan(const DirectCorrelation& problem) {
  constexpr int64_t most_channels = 8;
  Plan best;
  best.of = oriented(problem);
  const auto& axis = best.of.axis;
  for (int i = 0; i < 3; ++i)
    if (is_far(axis[i])) return best;
  const int64_t batch = problem.source.layout.count[0], groups = problem.source.layout.count[1];
  const int64_t inputs = problem.source.layout.count[2], outputs = problem.result.layout.count[2];
  const int64_t bytes = problem.dtype == ScalarType::Double ? 8 : 4, element_bytes = element_size(problem.dtype);
  const int64_t results[] = {axis[0].most_results(), axis[1].most_results(), axis[2].most_results()};
  double best_cost = 0;
  const auto consider = [&](DirectTile tile, int64_t outputs_at_once, int64_t inputs_at_once) {
    tile.outputs = outputs_at_once, tile.inputs = inputs_at_once;
    if (tile.units > 1 && (tile.outputs < outputs || tile.inputs < inputs)) return;  // their planes do not adjoin
    const Extent extent(problem, best.of, tile);
    if (extent.threads > kThreads || extent.shared_numel() * bytes > kSharedBytes) return;
    const int64_t counts[] = {batch,
                              ceil_div(groups, tile.units),
                              ceil_div(outputs, tile.outputs),
                              ceil_div(results[0], tile.size[0]),
                              ceil_div(results[1], tile.size[1]),
                              ceil_div(results[2], tile.size[2]),
                              axis[0].phases,
                              axis[1].phases,
                              axis[2].phases};
    double blocks = 1;
    for (const int64_t count : counts) blocks *= static_cast<double>(count);
    const int64_t source_step[] = {axis[0].source_step, axis[1].source_step, axis[2].source_step};
    const int64_t result_step[] = {axis[0].result_step, axis[1].result_step, axis[2].result_step};
    const double taps = static_cast<double>(extent.tap_numel()), pieces = ceil_div(inputs, tile.inputs);
    const double moved =
        pieces * extent.source_numel *
            sector_penalty(extent.source_innermost, extent.sources, extent.read, source_step, element_bytes) +
        pieces * extent.planes * tile.inputs * taps +
        extent.result_numel *
            sector_penalty(extent.result_innermost, extent.planes, tile.size, result_step, element_bytes);
    const double computed =
        ceil_div(extent.threads, 32) * 32 * (inputs * taps * kStrip * (axis[1].advance <= 2 ? 1.5 : 2.5) + 50);
    const double cost =
        std::max(blocks, kBlocksThatFillAGpu) * (kInstructionsOfABlock + kInstructionsToMove * moved + computed);
    if (best.fits && cost >= best_cost) return;
    best_cost = cost;
    best.fits = true;
    best.tile = tile;
    std::copy(counts, counts + 9, best.counts);
    best.blocks = static_cast<int64_t>(blocks);
    best.shared_bytes = ceil_div(extent.shared_numel() * bytes, 16) * 16;
    best.rows = tile.size[1], best.columns = tile.size[2], best.planes = extent.sources;
  };
  for_each_tile_shape(results, groups, kThreads, [&](const DirectTile& tile) {
    consider(tile, std::min(outputs, most_channels), std::min(inputs, most_channels));
    if (tile.units == 1) consider(tile, 1, 1);
  });
  return best;
}

// The largest number that the index maths of the kernel meets. What is of one image need not hold for the batch.
double largest_index(const DirectCorrelation& problem, const Plan& plan) {
  const auto& [image, positions] = std::tie(problem.geometry.image, problem.geometry.positions);
  double result = std::max({static_cast<double>(plan.blocks),
                            image_reach(problem.source.layout, problem.backward ? positions : image),
                            image_reach(problem.result.layout, problem.backward ? image : positions),
                            largest_offset(problem.weight.layout, problem.geometry.kernel)});
  for (int i = 0; i < 3; ++i) result = std::max(result, largest_place(plan.of.axis[i], plan.tile.size[i]));
  return result + 2.0 * kThreads;
}

// --- launcher --------------------------------------------------------------------------------------------------------

template <class Index>
Problem<Index> make_problem(const DirectCorrelation& problem, const Plan& plan) {
  Problem<Index> result;
  for (int i = 0; i < 3; ++i) {
    result.axis[i] = Axis<Index>(plan.of.axis[i]);
    result.source_stride[i] = plan.of.source_stride[i];
    result.weight_stride[i] = plan.of.weight_stride[i];
    result.result_stride[i] = plan.of.result_stride[i];
    result.weight_plane[i] = problem.weight.layout.stride[i];
  }
  result.blocks = Unraveler<9, Index>(plan.counts);
  result.count = plan.blocks;
  result.source_batch = problem.source.layout.stride[0], result.result_batch = problem.result.layout.stride[0];
  result.source_channel = problem.source.layout.stride[2], result.result_channel = problem.result.layout.stride[2];
  result.groups = problem.source.layout.count[1];
  result.inputs = problem.source.layout.count[2], result.outputs = problem.result.layout.count[2];
  return result;
}

template <class T, class Index, int Advance, int Taps>
void launch_correlate(void* stream, const DirectCorrelation& problem, const Plan& plan) {
  const Extent extent(problem, plan.of, plan.tile);
  const Grid grid{plan.blocks, threads_of_block(extent.threads, extent.source_numel), plan.shared_bytes};
  launch(correlate<T, Index, Advance, Taps>, grid, stream, static_cast<const T*>(problem.source.data),
         static_cast<const T*>(problem.weight.data), static_cast<const T*>(problem.bias),
         static_cast<T*>(const_cast<void*>(problem.result.data)), make_problem<Index>(problem, plan),
         extent.work(plan.tile));
}

}  // namespace

DirectPlan plan_of(const DirectCorrelation& problem) { return make_plan(problem); }

void correlate_direct(void* stream, const DirectCorrelation& problem) {
  const Plan plan = make_plan(problem);
  const Axis<int64_t>& y = plan.of.axis[1];
  // Every phase has all taps where it is the only one, or where there is no stride to leave any out.
  const int64_t taps = !y.backward || y.stride == 1 ? y.taps : 0;
  dispatch_float(problem.dtype, [&](auto type) {
    with_index(largest_index(problem, plan), [&](auto index_type) {
      using T = typename decltype(type)::type;
      using Index = typename decltype(index_type)::type;
      // What is rare has the general kernels alone.
      if constexpr (sizeof(Index) == 4 && sizeof(T) <= 4) {
        if (y.advance == 1 && taps == 3) return launch_correlate<T, Index, 1, 3>(stream, problem, plan);
        if (y.advance == 1 && taps == 5) return launch_correlate<T, Index, 1, 5>(stream, problem, plan);
        if (y.advance == 1 && taps == 7) return launch_correlate<T, Index, 1, 7>(stream, problem, plan);
        if (y.advance == 2) return launch_correlate<T, Index, 2, 0>(stream, problem, plan);
      }
      if (y.advance == 1) return launch_correlate<T, Index, 1, 0>(stream, problem, plan);
      launch_correlate<T, Index, 0, 0>(stream, problem, plan);
    });
  });
}

}  // namespace unfoldconv::cuda
