// Splitting a loop over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

namespace unfoldconv::cpu {

// A thread is worth waking for about this many bytes of memory traffic.
constexpr int64_t kGrainBytes = 64 * 1024;

// f(begin, end) over [0, count), where one item moves `bytes_per_item`. Inside another parallel loop it stays serial.
template <class F>
void parallel_over(int64_t count, int64_t bytes_per_item, const F& f) {
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, bytes_per_item));
  if (count <= grain) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, f);
}

}  // namespace unfoldconv::cpu
