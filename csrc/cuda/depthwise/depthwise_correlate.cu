// Direct sums for forward and input gradient: which tile, which kernel (depthwise_correlate.cuh).
#include <tuple>

#include "cuda/depthwise/depthwise_correlate.cuh"
#include "cuda/depthwise/depthwise_launch.h"
#include "cuda/shared/plan_cache.h"

namespace unfoldconv::cuda {
namespace {

// --- plan ------------------------------------------------------------------------------------------------------------

// Axes in the order in which the kernel has them.
struct Oriented {
  Axis<int64_t> axis[3];
  BoxTensor source, result;
  int64_t weight_stride[3];

  explicit Oriented(const DirectCorrelation& problem)
      : source(box_tensor(problem.source, problem.dtype)), result(box_tensor(problem.result, problem.dtype)) {
    std::copy(problem.weight.layout.axis_stride, problem.weight.layout.axis_stride + 3, weight_stride);
    for (int i = 0; i < 3; ++i) axis[i] = make_axis(problem.geometry, i, problem.backward);
    orient(axis, weight_stride, source, result);
  }
};

// What a block with some tile has in shared memory.
struct Extent {
  int64_t read[3], most_taps[3];
  int64_t sources, planes, threads;
  int64_t source_numel, result_numel, row_pitch, tap_pitch;  // numbers in shared memory
  int64_t header_bytes = Header<int64_t>::kBytes;
  bool planes_first;

  Extent(const Oriented& of, const DirectTile& tile)
      : sources(tile.units * tile.inputs),
        planes(tile.units * tile.outputs),
        threads(planes * tile.strips()),
        planes_first(tile.size[2] == 1) {
    for (int axis = 0; axis < 3; ++axis) {
      most_taps[axis] = std::max<int64_t>(1, of.axis[axis].most_taps());
      // What does not fit anyway is not multiplied out.
      read[axis] = std::min((tile.size[axis] - 1) * of.axis[axis].advance + most_taps[axis], kSharedBytes);
    }
    header_bytes = Header<int64_t>::bytes(std::max(of.source.lines(read), of.result.lines(tile.size)));
    tap_pitch = ceil_div(most_taps[1], 4) * 4;
    // In fours, an odd number: planes that neighbouring threads have then start in different banks.
    row_pitch = ((tile.inputs * most_taps[0] * most_taps[2] * tap_pitch / 4) | 1) * 4;
    source_numel = sources * plane_pitch_of(read, planes_first);
    result_numel = planes * plane_pitch_of(tile.size, planes_first);
  }

  int64_t shared_bytes(int64_t number_bytes) const {
    const int64_t numel = std::max(planes * row_pitch + source_numel, result_numel);
    return header_bytes + ceil_div(numel * number_bytes, 16) * 16;
  }
  int64_t tap_numel() const { return most_taps[0] * most_taps[1] * most_taps[2]; }

  Work work(const Oriented& of, const DirectTile& tile) const {
    Work work;
    work.units = static_cast<int>(tile.units);
    work.outputs = static_cast<int>(tile.outputs), work.inputs = static_cast<int>(tile.inputs);
    work.planes_first = planes_first;
    work.source = make_box(of.source, sources, read, planes_first);
    work.result = make_box(of.result, planes, tile.size, planes_first);
    std::copy(most_taps, most_taps + 3, work.most_taps);
    std::copy(tile.size, tile.size + 3, work.size);
    work.tap_pitch = static_cast<int>(tap_pitch), work.row_pitch = static_cast<int>(row_pitch);
    work.header_bytes = static_cast<int>(header_bytes);
    work.image_at = static_cast<int>(planes * row_pitch);
    work.threads = static_cast<int>(threads);
    for (int axis = 0; axis < 3; ++axis) work.taps[axis] = Divider<int32_t>(most_taps[axis]);
    work.width = Divider<int32_t>(tile.size[2]), work.depth = Divider<int32_t>(tile.size[0]);
    work.strips = Divider<int32_t>(tile.size[1] / kStrip);
    work.plane_count = Divider<int32_t>(planes);
    work.output_count = Divider<int32_t>(tile.outputs), work.input_count = Divider<int32_t>(tile.inputs);
    return work;
  }
};

struct Plan : DirectPlan {
  DirectTile tile;
  Oriented of;
  int64_t counts[9];  // as Problem::blocks

  explicit Plan(const DirectCorrelation& problem) : of(problem) {}
};

Plan make_plan(const DirectCorrelation& problem) {
  constexpr int64_t most_channels = 8;
  Plan best(problem);
  const auto& axis = best.of.axis;
  for (int i = 0; i < 3; ++i)
    if (is_far(axis[i])) return best;
  const int64_t batch = problem.source.layout.count[0], groups = problem.source.layout.count[1];
  const int64_t inputs = problem.source.layout.count[2], outputs = problem.result.layout.count[2];
  const int64_t bytes = problem.dtype == ScalarType::Double ? 8 : 4;
  const int64_t results[] = {axis[0].most_results(), axis[1].most_results(), axis[2].most_results()};
  double best_cost = 0;
  const auto consider = [&](DirectTile tile, int64_t outputs_at_once, int64_t inputs_at_once) {
    tile.outputs = outputs_at_once, tile.inputs = inputs_at_once;
    if (tile.units > 1 && (tile.outputs < outputs || tile.inputs < inputs)) return;  // their planes lie apart
    const Extent extent(best.of, tile);
    if (extent.threads > kThreads || extent.shared_bytes(bytes) > kSharedBytes) return;
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
    const double taps = static_cast<double>(extent.tap_numel()), pieces = ceil_div(inputs, tile.inputs);
    const double moved = pieces * extent.source_numel * best.of.source.sector_penalty(extent.sources, extent.read) +
                         pieces * extent.planes * tile.inputs * taps +
                         extent.result_numel * best.of.result.sector_penalty(extent.planes, tile.size);
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
    best.shared_bytes = extent.shared_bytes(bytes);
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
    result.source_stride[i] = plan.of.source.stride[i];
    result.weight_stride[i] = plan.of.weight_stride[i];
    result.result_stride[i] = plan.of.result.stride[i];
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

template <class T, class Index>
void launch_correlate(void* stream, const DirectCorrelation& problem, const Plan& plan) {
  const Extent extent(plan.of, plan.tile);
  const Grid grid{plan.blocks, threads_of_block(extent.threads, extent.source_numel), plan.shared_bytes};
  launch(correlate<T, Index>, grid, stream, static_cast<const T*>(problem.source.data),
         static_cast<const T*>(problem.weight.data), static_cast<const T*>(problem.bias),
         static_cast<T*>(const_cast<void*>(problem.result.data)), make_problem<Index>(problem, plan),
         extent.work(plan.of, plan.tile));
}

}  // namespace

std::shared_ptr<const DirectPlan> plan_direct(const DirectCorrelation& problem) {
  static PlanCache<std::shared_ptr<const Plan>> plans;
  PlanKey key({static_cast<int64_t>(problem.dtype), problem.backward});
  key.add(problem.geometry).add(problem.source.layout).add(problem.weight.layout).add(problem.result.layout);
  return plans.get(key, [&] { return std::make_shared<const Plan>(make_plan(problem)); });
}

void correlate_direct(void* stream, const DirectCorrelation& problem, const DirectPlan& known) {
  Plan plan = static_cast<const Plan&>(known);
  plan.of.source.data = problem.source.data, plan.of.result.data = problem.result.data;
  dispatch_float(problem.dtype, [&](auto type) {
    with_index(largest_index(problem, plan), [&](auto index_type) {
      launch_correlate<typename decltype(type)::type, typename decltype(index_type)::type>(stream, problem, plan);
    });
  });
}

}  // namespace unfoldconv::cuda
