// Memory of tasks, and the queue that threads take them from.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#include "problem/integer_math.h"
#include "runtime/allocation.h"

namespace unfoldconv {

using torch::stable::Tensor;

constexpr int64_t kAlignment = 64;        // bytes; where each buffer starts
constexpr double kSerialFlops = 500000;   // below this a second thread costs more than it brings
constexpr int64_t kTasksPerProblem = 16;  // a problem is cut into at least about this many tasks, where it can be

// Memory from torch's allocator, at any alignment of it.
inline Tensor allocate_bytes(int64_t bytes, const Tensor& like) { return empty_bytes(bytes + kAlignment, like); }

// Memory for as long as it is in scope, where kernels of `like` can use it. A little for the CPU is there already: to
// get it from the allocator takes longer than a small problem does.
class Scratch {
 public:
  Scratch(int64_t bytes, const Tensor& like, bool on_device = false) {
    if (bytes == 0) return;
    if (on_device || bytes > static_cast<int64_t>(sizeof(near_))) far_ = allocate_bytes(bytes, like);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data_ptr() const { return far_ ? static_cast<char*>(far_->data_ptr()) : const_cast<char*>(near_); }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr int64_t kNearBytes = kAlignment;  // what is read or written beyond its end would be in here
#else
  static constexpr int64_t kNearBytes = 8 * 1024;
#endif
  alignas(kAlignment) char near_[kNearBytes];
  std::optional<Tensor> far_;
};

// Hands out aligned parts of one allocation. A carver of nothing counts how much they take.
class Carver {
 public:
  Carver() = default;
  explicit Carver(char* memory)
      : next_(reinterpret_cast<char*>(round_up(reinterpret_cast<intptr_t>(memory), kAlignment))) {}

  template <class T>
  T* take(int64_t count) {
    char* const result = next_;
    const int64_t size = round_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
    bytes_ += size;
    if (next_) next_ += size;
    return reinterpret_cast<T*>(result);
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* next_ = nullptr;
  int64_t bytes_ = 0;
};

// Tasks [0, count), which threads take one after the other, because they are not of one size.
class Tasks {
 public:
  explicit Tasks(int64_t count) : count_(count) {}
  bool take(int64_t& task) { return (task = next_++) < count_; }

 private:
  std::atomic<int64_t> next_{0};
  const int64_t count_;
};

}  // namespace unfoldconv
