// How correlate_planes.cpp cuts up a problem, and whether it is worth it.
#pragma once

#include <algorithm>

#include "cpu/correlate/weight_rows.h"
#include "cpu/shared/panel_cost.h"
#include "cpu/shared/terms.h"
#include "problem/correlation.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {

constexpr int64_t kCopiedTerms = 32;    // channels, or pairs of them, that are copied at a time
constexpr int64_t kLeastRunTerms = 16;  // shorter runs cost more than a gathered panel
constexpr int64_t kMostBandRows = 256;
constexpr int64_t kMostReach = int64_t{1} << 20;  // of a window along an axis, and of a row; more would not fit anyway

// In products of vectors: what a row of the copy takes, and each vector of it; an element of a weight that is packed;
// and by how much this engine must be ahead, because its lanes begin anywhere in a line of the cache.
constexpr double kRowCost = 40, kVectorCost = 6, kPackCost = 3, kLead = 0.90;

// How a problem is cut up. Of the copy, all sizes are in terms.
struct PlanesPlan {
  int64_t front;         // border before the first row of a plane
  int64_t row;           // from one row to the next
  int64_t plane, pitch;  // from one plane of the kernel to the next, and from one channel
  int64_t terms, chunk, chunks;
  int64_t band_rows, bands;
  int64_t lanes;      // of a band, whole vectors
  double time;        // in products of vectors, for each term
  double time_alone;  // the same of one image and group on one thread
};

template <class Terms>
void set_band(const Terms& terms, const Correlation<3>& problem, int64_t rows, PlanesPlan& plan) {
  const Geometry<3>& g = problem.geometry;
  plan.band_rows = rows;
  plan.bands = ceil_div(g.positions[1], rows);
  plan.lanes = round_up((rows - 1) * plan.row + g.positions[2], terms.tiles.lanes);
  const int64_t rows_read = rows + (g.kernel[1] - 1) * g.dilation[1], size = sizeof(typename Terms::T);
  plan.plane = plan.front + rows_read * plan.row;
  // Behind the last plane there is room for lanes beyond the last position.
  const int64_t numel = g.kernel[0] * plan.plane + (g.kernel[2] - 1) * g.dilation[2] + terms.most_lanes();
  plan.pitch = line_pitch(numel * size) / size;

  const double products = static_cast<double>(problem.rows()) * g.tap_numel();
  const int64_t vectors = plan.lanes / terms.tiles.lanes, tasks = problem.batch() * problem.groups() * g.positions[0];
  const double task = products * (vectors + kNarrowing * ceil_div(vectors, terms.tiles.vectors)) +
                      g.kernel[0] * rows_read * (kRowCost + kVectorCost * ceil_div(plan.row, terms.tiles.lanes));
  const double pack = kPackCost * products;
  plan.time = task * ceil_div(tasks * plan.bands, torch::stable::get_num_threads()) + pack;
  plan.time_alone = task * g.positions[0] * plan.bands + pack;
}

// What gathering panels takes for one image and group on one thread, in the same measure (best_cut).
template <class Terms>
double gathering_time(const Terms& terms, const Correlation<3>& problem) {
  const double vectors = static_cast<double>(problem.geometry.position_numel()) / terms.tiles.lanes;
  const double rows = problem.rows(), narrow = kNarrowing * rows / terms.tiles.vectors;
  return vectors * (rows + kGatherRows + narrow) * problem.geometry.tap_numel();
}

// Says why, where no band fits into the limit of memory, or none is fast.
template <class Terms>
const char* find_plan(const Terms& terms, const Correlation<3>& problem, PlanesPlan& plan) {
  using Sum = typename Terms::Sum;
  const Geometry<3>& g = problem.geometry;
  const int64_t limit = workspace_limit().cpu, reach = (g.kernel[2] - 1) * g.dilation[2] - g.padding_low[2];
  plan.front = std::max<int64_t>(0, g.padding_low[2]);
  plan.row = std::max({g.image[2] + plan.front, g.positions[2] + reach, g.positions[2]});
  for (int axis = 0; axis < 3; ++axis)
    if (std::max({g.kernel[axis], (g.kernel[axis] - 1) * g.dilation[axis], plan.row}) > kMostReach)
      return "windows reach farther than a copy of a plane could";
  plan.terms = Terms::count(problem.channels());
  plan.chunk = std::min(plan.terms, kCopiedTerms);
  plan.chunks = ceil_div(plan.terms, plan.chunk);
  PlanesPlan best{};
  double least = 0;
  for (int64_t rows = std::min(g.positions[1], kMostBandRows); rows > 0; --rows) {
    set_band(terms, problem, rows, plan);
    const bool fits = plan.chunk * plan.pitch * static_cast<int64_t>(sizeof(typename Terms::T)) <= limit / 4 &&
                      problem.rows() * plan.lanes * static_cast<int64_t>(sizeof(Sum)) <= limit / 4;
    if (!fits) continue;
    if (best.time == 0 || plan.time < best.time) best = plan;
    if (least == 0 || plan.time_alone < least) least = plan.time_alone;
  }
  plan = best;
  if (least == 0) return "a band of rows and its sums do not fit the workspace limit";
  // No sum may depend on the number of images or threads, so neither may the engine.
  return least < kLead * gathering_time(terms, problem) ? nullptr
                                                        : "to gather panels takes less time than to copy planes";
}

}  // namespace unfoldconv::cpu
