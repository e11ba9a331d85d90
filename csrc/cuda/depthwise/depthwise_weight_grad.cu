// Direct sums for the weight gradient: which tile, how many splits, which kernel (depthwise_weight_grad.cuh).
#include "cuda/depthwise/depthwise_launch.h"
#include "cuda/depthwise/depthwise_weight_grad.cuh"
#include "cuda/shared/plan_cache.h"

namespace unfoldconv::cuda {
namespace {

// --- plan ------------------------------------------------------------------------------------------------------------

struct Plan : DirectPlan {
  Axis<int64_t> axis[3];
  BoxTensor image, gradient;
  int64_t tap_stride[3];
  DirectTile tile;
  int64_t taps;  // of a role
  int64_t jobs[5], tiles[7], tile_count, numel;

  explicit Plan(const DirectWeightSums& problem)
      : image(box_tensor(problem.image, problem.dtype)), gradient(box_tensor(problem.gradient, problem.dtype)) {
    int64_t taps = 1;
    for (int i = 2; i >= 0; --i) {
      axis[i] = make_axis(problem.geometry, i, /*backward=*/false);
      tap_stride[i] = taps;
      taps *= axis[i].taps;
    }
    numel = problem.image.layout.count[1] * problem.image.layout.count[2] * problem.gradient.layout.count[2] * taps;
    orient(axis, tap_stride, image, gradient);
  }
};

// What a block with some tile has to do.
struct Extent {
  int64_t read[3], images, gradients, pieces, roles, role_count, columns, slices;
  int64_t image_numel, gradient_numel, header_bytes;
  bool lines;

  Extent(const Plan& plan, const DirectTile& tile)
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
    header_bytes = Header<int64_t>::bytes(plan.image.lines(read) + plan.gradient.lines(tile.size));
  }

  int64_t shared_bytes(int64_t taps, int64_t number_bytes) const {
    const int64_t numel = std::max(image_numel + gradient_numel, slices * roles * taps);
    return header_bytes + ceil_div(numel * number_bytes, 16) * 16;
  }

  Work work(const Plan& plan) const {
    const DirectTile& tile = plan.tile;
    Work work;
    work.image = make_box(plan.image, images, read, lines);
    work.gradient = make_box(plan.gradient, gradients, tile.size, lines);
    std::copy(tile.size, tile.size + 3, work.size);
    work.header_bytes = static_cast<int>(header_bytes);
    work.gradient_at = static_cast<int>(image_numel);
    work.columns = static_cast<int>(columns);
    work.roles = static_cast<int>(roles), work.slices = static_cast<int>(slices);
    work.role_count = static_cast<int>(role_count), work.taps = static_cast<int>(plan.taps);
    work.role_taps = Divider<int32_t>(plan.taps);
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
  if (axis.advance != 1) return 3;
  int64_t best = 3;
  const auto cost = [&](int64_t taps) { return ceil_div(axis.taps, taps) * (taps + 2); };
  for (const int64_t taps : {5, 8})
    if (cost(taps) < cost(best)) best = taps;
  return best;
}

Plan make_plan(const DirectWeightSums& problem, int64_t workspace_limit) {
  constexpr int64_t most_channels = 8, most_splits = 256, enough_blocks = 1024;
  Plan best(problem);
  const auto& axis = best.axis;
  for (int i = 0; i < 3; ++i)
    if (is_far(axis[i])) return best;
  const int64_t batch = problem.image.layout.count[0], groups = problem.image.layout.count[1];
  const int64_t inputs = problem.image.layout.count[2], outputs = problem.gradient.layout.count[2];
  const int64_t bytes = problem.dtype == ScalarType::Double ? 8 : 4;
  const int64_t results[] = {axis[0].most_results(), axis[1].most_results(), axis[2].most_results()};
  best.taps = taps_of_a_role(axis[1]);
  const int64_t splits_that_fit = std::clamp<int64_t>(workspace_limit / (best.numel * bytes), 1, most_splits);
  double best_cost = 0;
  const auto consider = [&](DirectTile tile, int64_t outputs_at_once, int64_t inputs_at_once) {
    tile.outputs = outputs_at_once, tile.inputs = inputs_at_once;
    if (tile.units > 1 && (tile.outputs < outputs || tile.inputs < inputs)) return;  // their planes lie apart
    const Extent extent(best, tile);
    if (extent.shared_bytes(best.taps, bytes) > kSharedBytes) return;
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
    const double moved = extent.image_numel * best.image.sector_penalty(extent.images, extent.read) +
                         extent.gradient_numel * best.gradient.sector_penalty(extent.gradients, tile.size);
    const double products = kStrip * best.taps;
    const double threads = ceil_div(extent.roles * extent.slices, 32) * 32;
    const double computed =
        ceil_div(extent.columns, extent.slices) * threads * (products * (axis[1].advance == 1 ? 1.2 : 2.2) + 35);
    const double cost =
        std::max(rounds, kBlocksThatFillAGpu) * (kInstructionsOfABlock + kInstructionsToMove * moved + computed);
    if (best.fits && cost >= best_cost) return;
    best_cost = cost;
    best.fits = true;
    best.tile = tile;
    std::copy(jobs, jobs + 5, best.jobs);
    std::copy(tiles, tiles + 7, best.tiles);
    best.rows = tile.size[1], best.columns = tile.size[2], best.planes = extent.images;
    best.shared_bytes = extent.shared_bytes(best.taps, bytes);
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

// --- launcher --------------------------------------------------------------------------------------------------------

template <class Index>
Problem<Index> make_problem(const DirectWeightSums& problem, const Plan& plan) {
  Problem<Index> result;
  for (int i = 0; i < 3; ++i) {
    result.axis[i] = Axis<Index>(plan.axis[i]);
    result.image_stride[i] = plan.image.stride[i];
    result.gradient_stride[i] = plan.gradient.stride[i];
    result.tap_stride[i] = plan.tap_stride[i];
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

template <class T, class Index>
void launch_sums(void* stream, const DirectWeightSums& problem, const Plan& plan, void* workspace) {
  auto* const result = static_cast<T*>(problem.result);
  auto* const partial = plan.splits > 1 ? static_cast<Accumulator<T>*>(workspace) : nullptr;
  const Extent extent(plan, plan.tile);
  const Grid grid{plan.blocks, threads_of_block(extent.roles * extent.slices, extent.image_numel), plan.shared_bytes};
  launch(sum_tiles<T, Index>, grid, stream, static_cast<const T*>(problem.image.data),
         static_cast<const T*>(problem.gradient.data), result, partial, make_problem<Index>(problem, plan),
         extent.work(plan));
  if (partial != nullptr) launch_add_splits<T>(stream, partial, result, plan.numel, plan.splits);
}

}  // namespace

std::shared_ptr<const DirectPlan> plan_direct(const DirectWeightSums& problem, int64_t workspace_limit) {
  static PlanCache<std::shared_ptr<const Plan>> plans;
  PlanKey key({static_cast<int64_t>(problem.dtype), workspace_limit});
  key.add(problem.geometry).add(problem.gradient.layout).add(problem.image.layout);
  return plans.get(key, [&] { return std::make_shared<const Plan>(make_plan(problem, workspace_limit)); });
}

void weight_sums_direct(void* stream, const DirectWeightSums& problem, const DirectPlan& known, void* workspace) {
  Plan plan = static_cast<const Plan&>(known);
  plan.image.data = problem.image.data, plan.gradient.data = problem.gradient.data;
  dispatch_float(problem.dtype, [&](auto type) {
    with_index(largest_index(problem, plan), [&](auto index_type) {
      launch_sums<typename decltype(type)::type, typename decltype(index_type)::type>(stream, problem, plan, workspace);
    });
  });
}

}  // namespace unfoldconv::cuda
