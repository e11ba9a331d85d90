// Parallel tasks that need memory of their own.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>

#include "runtime/allocation.h"

namespace unfoldconv::cpu {

using torch::stable::Tensor;

constexpr int64_t kAlignment = 64;        // bytes; where each buffer starts
constexpr double kSerialFlops = 500000;   // below this a second thread costs more than it brings
constexpr int64_t kTasksPerProblem = 16;  // a problem is cut into at least about this many tasks, where it can be

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Memory from torch's allocator, at any alignment of it.
inline Tensor allocate_bytes(int64_t bytes, const Tensor& like) { return empty_bytes(bytes + kAlignment, like); }

// Memory for as long as it is in scope. A little of it is there already: to get it from the allocator takes longer than
// a small problem does.
class Scratch {
 public:
  Scratch(int64_t bytes, const Tensor& like) {
    if (bytes > static_cast<int64_t>(sizeof(near_))) far_ = allocate_bytes(bytes, like);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data_ptr() const { return far_ ? far_->data_ptr() : const_cast<char*>(near_); }

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
  template <class Memory>
  explicit Carver(const Memory& memory)
      : next_(reinterpret_cast<char*>(round_up(reinterpret_cast<intptr_t>(memory.data_ptr()), kAlignment))) {}

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

// body(task, buffers) for every task in [0, tasks). Each thread has buffers of its own, which carve(Carver&) returns,
// and takes one task after the other, because they are not of one size.
template <class Carve, class Body>
void run_tasks(int64_t tasks, bool serial, const Tensor& like, const Carve& carve, const Body& body) {
  std::atomic<int64_t> next{0};
  const auto run = [&](int64_t, int64_t) {
    Carver count;
    carve(count);
    const Scratch memory(count.bytes(), like);
    Carver carver(memory);
    const auto buffers = carve(carver);
    for (int64_t task = next++; task < tasks; task = next++) body(task, buffers);
  };
  if (serial || tasks == 1)
    run(0, tasks);
  else if (tasks > 0)
    torch::stable::parallel_for(0, tasks, 1, run);
}

}  // namespace unfoldconv::cpu
