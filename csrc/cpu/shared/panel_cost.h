// How the positions engine cuts a problem into tasks: panels of positions, and parts of the rows.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "runtime/rows.h"

namespace unfoldconv::cpu {

constexpr int64_t kGatherRows = 16;  // gathering a panel takes as long as multiplying it by so many rows
constexpr double kNarrowing = 0.25;  // what a tile takes beside its products, in those of a vector

// How many vectors a panel is best made of, and into how many parts, at most `most_parts`, the rows of a panel are best
// cut: smaller tasks keep threads busier, but each reads the weight again or gathers its panel again. No result depends
// on it, so it may follow the number of threads.
struct Cut {
  int64_t panel_vectors, parts;
};

inline Cut best_cut(int64_t vectors, int64_t most_vectors, int64_t groups, int64_t rows, int64_t most_parts) {
  const int64_t threads = torch::stable::get_num_threads();
  Cut best{};
  double least = 0;
  for (int64_t width = std::min(vectors, most_vectors); width > 0; --width)
    for (int64_t parts = 1; parts <= most_parts; ++parts) {
      const int64_t tasks = ceil_div(vectors, width) * groups * parts;
      // Tasks are taken in order, those of the last panel, which may be narrower, at the end.
      const int64_t last_tasks = tasks - (ceil_div(tasks, threads) - 1) * threads;
      const int64_t narrow = vectors % width, last_width = narrow && last_tasks <= groups * parts ? narrow : width;
      const double rows_of_task = 1. * rows / parts;
      const auto time = [&](int64_t panel) { return panel * (rows_of_task + kGatherRows) + kNarrowing * rows_of_task; };
      const double sum = (ceil_div(tasks, threads) - 1) * time(width) + time(last_width);
      if (least == 0 || sum < least) least = sum, best = {width, parts};
    }
  return best;
}

}  // namespace unfoldconv::cpu
