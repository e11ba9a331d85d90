// The weight gradient by direct sums, for one or a few channels per group (depthwise.h says of what).
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
// Floors: bytes / bandwidth, and one FMA for each position and tap, for which shared memory is asked for
// (2 * kStrip + Taps - 1) / (kStrip * Taps) numbers.
#include "depthwise.h"
#include "depthwise_box.cuh"
#include "depthwise_tiles.h"
#include "shared.cuh"

namespace unfoldconv::cuda {
namespace {

// --- kernels ---------------------------------------------------------------------------------------------------------

// Indices within a block.
struct Work {
  BoxPlan image, gradient;
  int gradient_at;                 // in shared memory, behind the image
  int columns, roles, slices;      // of a tile, and of a block; a column is of kStrip positions
  int role_count;                  // in all
  bool slices_first;               // neighbouring threads have neighbouring slices
  int units, outputs, inputs;      // as in DirectTile
  Divider<int32_t> thread;         // into slice and role
  Divider<int32_t> width, strips;  // columns of a tile along x and y
  Divider<int32_t> row_taps, pieces, depth_taps, input_count, output_count;  // of a role
};

template <class Index>
struct Problem {
  Axis<Index> axis[3];
  Unraveler<5, Index> jobs;   // units, outputs, inputs, roles, splits
  Unraveler<7, Index> tiles;  // batch, tiles of z, y, x, phases of z, y, x
  Index job_count, tile_count, splits, tile_size[3];
  int64_t image_batch, gradient_batch;  // strides
  Index image_channel, image_stride[3], gradient_channel, gradient_stride[3];
  Index groups, outputs, inputs;
  Index tap_stride[3], taps, numel;  // of the result
};

// The sums that a thread is about.
struct Role {
  int x, first_y, z, input, output, unit;

  __device__ __forceinline__ Role(const Work& work, int role, int taps) {
    x = work.row_taps.divide(role);
    first_y = work.pieces.divide(role) * taps;
    z = work.depth_taps.divide(role);
    input = work.input_count.divide(role);
    output = work.output_count.divide(role);
    unit = role;
  }
};

// Adds the products of the first `rows` positions of a strip with the elements that `Taps` taps read for them.
template <int Advance, int Taps, class A>
__device__ __forceinline__ void add_strip(const A* gradient, int gradient_pitch, const A* column, int pitch,
                                          int advance, int rows, A (&sum)[Taps]) {
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
        for (int k = 0; k < Taps; ++k) sum[k] += factor[v] * column[(v * advance + k) * pitch];
  }
}

template <class T, class Index, int Advance, int Taps>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Index>)
    sum_tiles(const T* __restrict__ image, const T* __restrict__ gradient, T* result, Accumulator<T>* partial,
              const __grid_constant__ Problem<Index> problem, const __grid_constant__ Work work) {
  using A = Accumulator<T>;
  A* const shared = dynamic_shared<A>();
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
    const Role role(work, min(first_role + role_of_block, work.role_count - 1), Taps);
    const bool busy = slice < work.slices && role_of_block < work.roles && first_role + role_of_block < work.role_count;

    A sum[Taps] = {};
    for (Index tile = at[4]; tile < problem.tile_count; tile += problem.splits) {
      Index part[7];
      problem.tiles(tile, part);
      Phase<Index> phase[3];
      Index first[3];
      int count[3];  // positions of this tile along each axis
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        const Axis<Index>& a = problem.axis[axis];
        phase[axis] = a.phase(part[4 + axis]);
        first[axis] = part[1 + axis] * problem.tile_size[axis];
        const Index left = (a.result_size - 1 - phase[axis].first) / a.result_step + 1 - first[axis];
        count[axis] = static_cast<int>(min(left, problem.tile_size[axis]));
      }
      __syncthreads();  // whoever still reads the tile before
      {
        const Side<Index> sides[] = {
            plane_side(work.image, groups * inputs, problem.image_channel),
            source_side(work.image, 0, problem.axis[0], phase[0], first[0], problem.image_stride[0]),
            source_side(work.image, 1, problem.axis[1], phase[1], first[1], problem.image_stride[1]),
            source_side(work.image, 2, problem.axis[2], phase[2], first[2], problem.image_stride[2])};
        load_box(image + static_cast<int64_t>(part[0]) * problem.image_batch +
                     (first_group * problem.inputs + first_input) * problem.image_channel,
                 work.image, sides, shared);
      }
      {
        const Side<Index> sides[] = {
            plane_side(work.gradient, groups * outputs, problem.gradient_channel),
            result_side(work.gradient, 0, problem.axis[0], phase[0], first[0], problem.gradient_stride[0]),
            result_side(work.gradient, 1, problem.axis[1], phase[1], first[1], problem.gradient_stride[1]),
            result_side(work.gradient, 2, problem.axis[2], phase[2], first[2], problem.gradient_stride[2])};
        load_box(gradient + static_cast<int64_t>(part[0]) * problem.gradient_batch +
                     (first_group * problem.outputs + first_output) * problem.gradient_channel,
                 work.gradient, sides, shared + work.gradient_at);
      }
      __syncthreads();
      if (!busy) continue;
      const A* const from = shared + (role.unit * work.inputs + role.input) * work.image.plane_pitch +
                            role.z * work.image.pitch[0] + role.first_y * work.image.pitch[1] + role.x;
      const A* const factors =
          shared + work.gradient_at + (role.unit * work.outputs + role.output) * work.gradient.plane_pitch;
      for (int column = slice; column < work.columns; column += work.slices) {
        int z = column;
        const int x = work.width.divide(z), y = work.strips.divide(z) * kStrip;
        if (x >= count[2] || y >= count[1] || z >= count[0]) continue;
        const int advance = static_cast<int>(problem.axis[1].advance);
        add_strip<Advance>(factors + z * work.gradient.pitch[0] + y * work.gradient.pitch[1] + x,
                           work.gradient.pitch[1],
                           from + z * static_cast<int>(problem.axis[0].advance) * work.image.pitch[0] +
                               y * advance * work.image.pitch[1] + x * static_cast<int>(problem.axis[2].advance),
                           work.image.pitch[1], advance, count[1] - y, sum);
      }
    }

    __syncthreads();  // the sums take the place of the tile
    if (busy)
#pragma unroll
      for (int k = 0; k < Taps; ++k) shared[(slice * work.roles + role_of_block) * Taps + k] = sum[k];
    __syncthreads();
    for (int item = threadIdx.x; item < work.roles * Taps; item += blockDim.x) {
      if (first_role + item / Taps >= work.role_count) continue;
      const Role of(work, first_role + item / Taps, Taps);
      const int y = of.first_y + item % Taps;
      if (of.unit >= groups || of.output >= outputs || of.input >= inputs || y >= problem.axis[1].taps) continue;
      A total = shared[item];
      for (int i = 1; i < work.slices; ++i) total += shared[i * work.roles * Taps + item];
      const Index plane = ((first_group + of.unit) * problem.outputs + first_output + of.output) * problem.inputs +
                          first_input + of.input;
      const Index offset = plane * problem.taps + of.z * problem.tap_stride[0] + y * problem.tap_stride[1] +
                           of.x * problem.tap_stride[2];
      if (partial == nullptr)
        result[offset] = convert<T>(total);
      else
        partial[static_cast<int64_t>(at[4]) * problem.numel + offset] = total;
    }
    __syncthreads();  // before the next job's tiles take their place
  });
}

// result[i] = sum over the splits of partial[split, i]: each of kParts warps adds up every kParts-th split, and the
// first of them what the others have found, in order.
template <class T, class Index>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<Index>)
    add_splits(const Accumulator<T>* __restrict__ partial, T* result, Index numel, int splits, Index blocks) {
  using A = Accumulator<T>;
  constexpr int parts = kThreads / 32;
  __shared__ A sums[parts][32];
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32;
  for_each_tile(blocks, [&](Index block) {
    const Index item = block * 32 + lane;
    A sum{};
    if (item < numel)
      for (int split = part; split < splits; split += parts) sum += partial[static_cast<int64_t>(split) * numel + item];
    sums[part][lane] = sum;
    __syncthreads();
    if (part == 0 && item < numel) {
#pragma unroll
      for (int i = 1; i < parts; ++i) sum += sums[i][lane];
      result[item] = convert<T>(sum);
    }
    __syncthreads();
  });
}

// --- plan ------------------------------------------------------------------------------------------------------------

struct Plan : DirectPlan {
  Axis<int64_t> axis[3];
  int64_t image_stride[3], gradient_stride[3], tap_stride[3];
  DirectTile tile;
  int64_t advance, taps;  // as the kernel is made for
  int64_t jobs[5], tiles[7], tile_count, numel;
};

// What a block with some tile has to do.
struct Extent {
  int64_t read[3], images, gradients, pieces, roles, role_count, columns, slices;
  int64_t image_numel, gradient_numel;
  bool lines;
  Innermost image_innermost, gradient_innermost;

  Extent(const DirectWeightSums& problem, const Plan& plan, const DirectTile& tile)
      : images(tile.units * tile.inputs), gradients(tile.units * tile.outputs), lines(tile.size[2] == 1) {
    pieces = ceil_div(plan.axis[1].taps, plan.taps);
    for (int i = 0; i < 3; ++i) {
      const int64_t taps = i == 1 ? pieces * plan.taps : plan.axis[i].taps;
      read[i] = std::min((tile.size[i] - 1) * plan.axis[i].advance + taps, kSharedBytes);
    }
    role_count = tile.units * tile.outputs * tile.inputs * plan.axis[0].taps * pieces * plan.axis[2].taps;
    roles = std::min<int64_t>(role_count, kThreads);
    columns = tile.strips();
    slices = std::min(kThreads / roles, columns);
    image_numel = images * plane_pitch_of(read, lines);
    gradient_numel = gradients * plane_pitch_of(tile.size, lines);
    image_innermost = innermost_of(images, read, problem.image.layout.stride[2], plan.image_stride);
    gradient_innermost = innermost_of(gradients, tile.size, problem.gradient.layout.stride[2], plan.gradient_stride);
  }

  int64_t shared_numel(int64_t taps) const { return std::max(image_numel + gradient_numel, slices * roles * taps); }

  Work work(const Plan& plan) const {
    const DirectTile& tile = plan.tile;
    Work work;
    work.image = make_box(images, read, image_innermost, lines);
    work.gradient = make_box(gradients, tile.size, gradient_innermost, lines);
    work.gradient_at = static_cast<int>(image_numel);
    work.columns = static_cast<int>(columns);
    work.roles = static_cast<int>(roles), work.slices = static_cast<int>(slices);
    work.role_count = static_cast<int>(role_count);
    work.slices_first = !lines;
    work.units = static_cast<int>(tile.units);
    work.outputs = static_cast<int>(tile.outputs), work.inputs = static_cast<int>(tile.inputs);
    work.thread = Divider<int32_t>(lines ? roles : slices);
    work.width = Divider<int32_t>(tile.size[2]), work.strips = Divider<int32_t>(tile.size[1] / kStrip);
    work.row_taps = Divider<int32_t>(plan.axis[2].taps), work.pieces = Divider<int32_t>(pieces);
    work.depth_taps = Divider<int32_t>(plan.axis[0].taps);
    work.input_count = Divider<int32_t>(tile.inputs), work.output_count = Divider<int32_t>(tile.outputs);
    return work;
  }
};

// How many taps along y a thread adds up: few numbers are loaded for each product where there are many, and few
// products are for nothing where they divide what there is.
int64_t taps_of_a_role(const Axis<int64_t>& axis) {
  int64_t best = 3;
  const auto cost = [&](int64_t taps) { return ceil_div(axis.taps, taps) * (taps + 2); };
  for (const int64_t taps : {5, 8})
    if (cost(taps) < cost(best)) best = taps;
  return best;
}

// `general`: for the kernel that takes anything.
Plan make_plan(const DirectWeightSums& problem, int64_t workspace_limit, bool general) {
  constexpr int64_t most_channels = 8, most_splits = 256, enough_blocks = 1024;
  Plan best;
  int64_t taps = 1;
  for (int i = 2; i >= 0; --i) {
    best.axis[i] = make_axis(problem.geometry, i, /*backward=*/false);
    best.image_stride[i] = problem.image.layout.axis_stride[i];
    best.gradient_stride[i] = problem.gradient.layout.axis_stride[i];
    best.tap_stride[i] = taps;
    taps *= best.axis[i].taps;
    if (is_far(best.axis[i])) return best;
  }
  if (best.axis[1].most_results() == 1) {  // strips are along y
    std::swap(best.axis[1], best.axis[2]);
    std::swap(best.image_stride[1], best.image_stride[2]);
    std::swap(best.gradient_stride[1], best.gradient_stride[2]);
    std::swap(best.tap_stride[1], best.tap_stride[2]);
  }
  const auto& axis = best.axis;
  const int64_t batch = problem.image.layout.count[0], groups = problem.image.layout.count[1];
  const int64_t inputs = problem.image.layout.count[2], outputs = problem.gradient.layout.count[2];
  const int64_t bytes = problem.dtype == ScalarType::Double ? 8 : 4, element_bytes = element_size(problem.dtype);
  const int64_t results[] = {axis[0].most_results(), axis[1].most_results(), axis[2].most_results()};
  best.numel = groups * outputs * inputs * taps;
  best.advance = general || axis[1].advance != 1 ? 0 : 1;
  best.taps = best.advance == 0 ? 3 : taps_of_a_role(axis[1]);
  const int64_t splits_that_fit = std::clamp<int64_t>(workspace_limit / (best.numel * bytes), 1, most_splits);
  double best_cost = 0;
  const auto consider = [&](DirectTile tile, int64_t outputs_at_once, int64_t inputs_at_once) {
    tile.outputs = outputs_at_once, tile.inputs = inputs_at_once;
    if (tile.units > 1 && (tile.outputs < outputs || tile.inputs < inputs)) return;  // their planes do not adjoin
    const Extent extent(problem, best, tile);
    if (extent.shared_numel(best.taps) * bytes > kSharedBytes) return;
    const int64_t jobs[] = {ceil_div(groups, tile.units), ceil_div(outputs, tile.outputs),
                            ceil_div(inputs, tile.inputs), ceil_div(extent.role_count, extent.roles), 1};
    const int64_t tiles[] = {batch,
                             ceil_div(results[0], tile.size[0]),
                             ceil_div(results[1], tile.size[1]),
                             ceil_div(results[2], tile.size[2]),
                             axis[0].phases,
                             axis[1].phases,
                             axis[2].phases};
    double rounds = 1;
    for (const int64_t count : jobs) rounds *= static_cast<double>(count);
    for (const int64_t count : tiles) rounds *= static_cast<double>(count);
    const int64_t step[] = {axis[0].source_step, axis[1].source_step, axis[2].source_step};
    const double moved =
        extent.image_numel * sector_penalty(extent.image_innermost, extent.images, extent.read, step, element_bytes) +
        extent.gradient_numel *
            sector_penalty(extent.gradient_innermost, extent.gradients, tile.size, step, element_bytes);
    const double products = kStrip * best.taps;
    const double threads = ceil_div(extent.roles * extent.slices, 32) * 32;
    const double computed =
        ceil_div(extent.columns, extent.slices) * threads * (products * (best.advance == 1 ? 1.2 : 2.2) + 35);
    const double cost =
        std::max(rounds, kBlocksThatFillAGpu) * (kInstructionsOfABlock + kInstructionsToMove * moved + computed);
    if (best.fits && cost >= best_cost) return;
    best_cost = cost;
    best.fits = true;
    best.tile = tile;
    std::copy(jobs, jobs + 5, best.jobs);
    std::copy(tiles, tiles + 7, best.tiles);
    best.rows = tile.size[1], best.columns = tile.size[2], best.planes = extent.images;
    best.shared_bytes = ceil_div(extent.shared_numel(best.taps) * bytes, 16) * 16;
  };
  for_each_tile_shape(results, groups, int64_t{kThreads} * 4, [&](const DirectTile& tile) {
    consider(tile, std::min(outputs, most_channels), std::min(inputs, most_channels));
    if (tile.units == 1) consider(tile, 1, 1);
  });
  if (!best.fits) return best;
  best.blocks = best.tile_count = 1;
  for (const int64_t count : best.tiles) best.tile_count *= count;
  for (const int64_t count : best.jobs) best.blocks *= count;
  const int64_t wanted = std::clamp<int64_t>(ceil_div(enough_blocks, best.blocks), 1, splits_that_fit);
  best.splits = std::clamp<int64_t>(best.tile_count, 1, wanted);
  best.jobs[4] = best.splits;
  best.blocks *= best.splits;
  if (best.splits > 1) best.workspace_bytes = best.splits * best.numel * bytes;
  return best;
}

// The largest number that the index maths of the kernels meets. What is of one image need not hold for the batch.
double largest_index(const DirectWeightSums& problem, const Plan& plan) {
  double result = std::max({static_cast<double>(plan.blocks), static_cast<double>(plan.tile_count) + plan.splits,
                            static_cast<double>(plan.numel), image_reach(problem.image.layout, problem.geometry.image),
                            image_reach(problem.gradient.layout, problem.geometry.positions)});
  for (int i = 0; i < 3; ++i) result = std::max(result, largest_place(plan.axis[i], plan.tile.size[i]));
  return result + 2.0 * kThreads;
}

// What is rare has the general kernel alone.
Plan chosen_plan(const DirectWeightSums& problem, int64_t workspace_limit) {
  const Plan plan = make_plan(problem, workspace_limit, problem.dtype == ScalarType::Double);
  if (plan.advance == 0 || largest_index(problem, plan) <= limits.index) return plan;
  return make_plan(problem, workspace_limit, /*general=*/true);
}

// --- launcher --------------------------------------------------------------------------------------------------------

template <class Index>
Problem<Index> make_problem(const DirectWeightSums& problem, const Plan& plan) {
  Problem<Index> result;
  for (int i = 0; i < 3; ++i) {
    result.axis[i] = Axis<Index>(plan.axis[i]);
    result.image_stride[i] = plan.image_stride[i];
    result.gradient_stride[i] = plan.gradient_stride[i];
    result.tap_stride[i] = plan.tap_stride[i];
    result.tile_size[i] = plan.tile.size[i];
  }
  result.jobs = Unraveler<5, Index>(plan.jobs);
  result.tiles = Unraveler<7, Index>(plan.tiles);
  result.job_count = plan.blocks, result.tile_count = plan.tile_count, result.splits = plan.splits;
  result.image_batch = problem.image.layout.stride[0], result.gradient_batch = problem.gradient.layout.stride[0];
  result.image_channel = problem.image.layout.stride[2], result.gradient_channel = problem.gradient.layout.stride[2];
  result.groups = problem.image.layout.count[1];
  result.inputs = problem.image.layout.count[2], result.outputs = problem.gradient.layout.count[2];
  result.taps = problem.geometry.tap_numel(), result.numel = plan.numel;
  return result;
}

template <class T, class Index, int Advance, int Taps>
void launch_sums(void* stream, const DirectWeightSums& problem, const Plan& plan, void* workspace) {
  auto* const result = static_cast<T*>(problem.result);
  auto* const partial = plan.splits > 1 ? static_cast<Accumulator<T>*>(workspace) : nullptr;
  const Extent extent(problem, plan, plan.tile);
  const Grid grid{plan.blocks, threads_of_block(extent.roles * extent.slices, extent.image_numel), plan.shared_bytes};
  launch(sum_tiles<T, Index, Advance, Taps>, grid, stream, static_cast<const T*>(problem.image.data),
         static_cast<const T*>(problem.gradient.data), result, partial, make_problem<Index>(problem, plan),
         extent.work(plan));
  if (plan.splits == 1) return;
  const int64_t blocks = ceil_div(plan.numel, 32);
  launch(add_splits<T, Index>, Grid{blocks}, stream, static_cast<const Accumulator<T>*>(partial), result,
         static_cast<Index>(plan.numel), static_cast<int>(plan.splits), static_cast<Index>(blocks));
}

}  // namespace

DirectPlan plan_of(const DirectWeightSums& problem, int64_t workspace_limit) {
  return chosen_plan(problem, workspace_limit);
}

void weight_sums_direct(void* stream, const DirectWeightSums& problem, int64_t workspace_limit, void* workspace) {
  const Plan plan = chosen_plan(problem, workspace_limit);
  dispatch_float(problem.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) <= 4) {
      if (plan.advance == 1) {
        if (plan.taps == 3) return launch_sums<T, int32_t, 1, 3>(stream, problem, plan, workspace);
        if (plan.taps == 5) return launch_sums<T, int32_t, 1, 5>(stream, problem, plan, workspace);
        return launch_sums<T, int32_t, 1, 8>(stream, problem, plan, workspace);
      }
    }
    with_index(largest_index(problem, plan), [&](auto index_type) {
      launch_sums<T, typename decltype(index_type)::type, 0, 3>(stream, problem, plan, workspace);
    });
  });
}

}  // namespace unfoldconv::cuda
