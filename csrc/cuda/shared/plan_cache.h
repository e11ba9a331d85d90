// Plans of problems that have come before, so that a call costs no search for one. Any thread may ask.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <mutex>
#include <vector>

#include "problem/geometry.h"

namespace unfoldconv::cuda {

// All that a plan depends on, as numbers; what plans of one cache have in common need not be there.
class PlanKey {
 public:
  explicit PlanKey(std::initializer_list<int64_t> numbers) : numbers_(numbers) { numbers_.reserve(64); }

  PlanKey& add(int64_t number) {
    numbers_.push_back(number);
    return *this;
  }
  PlanKey& add(const Geometry<3>& geometry) {
    for (const auto* sizes : {&geometry.image, &geometry.positions, &geometry.kernel, &geometry.stride,
                              &geometry.dilation, &geometry.padding_low})
      numbers_.insert(numbers_.end(), *sizes, *sizes + 3);
    return *this;
  }
  PlanKey& add(const PlaneLayout<3>& layout) {
    for (const auto* numbers : {&layout.count, &layout.stride, &layout.axis_stride})
      numbers_.insert(numbers_.end(), *numbers, *numbers + 3);
    return *this;
  }

  bool operator<(const PlanKey& other) const { return numbers_ < other.numbers_; }

 private:
  std::vector<int64_t> numbers_;
};

template <class Plan>
class PlanCache {
 public:
  // The plan of a problem: make() where it is not known. Two threads may both make it, which gives the same.
  template <class F>
  Plan get(const PlanKey& key, F&& make) {
    {
      const std::lock_guard lock(mutex_);
      if (const auto known = plans_.find(key); known != plans_.end()) return known->second;
    }
    const Plan plan = make();
    const std::lock_guard lock(mutex_);
    if (plans_.size() >= kMost) plans_.clear();  // rare: a network has few shapes
    plans_.emplace(key, plan);
    return plan;
  }

 private:
  static constexpr size_t kMost = 512;

  std::mutex mutex_;
  std::map<PlanKey, Plan> plans_;
};

}  // namespace unfoldconv::cuda
