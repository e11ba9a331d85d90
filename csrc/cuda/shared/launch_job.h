// A job of CUDA kernels, as the driver runs it.
#pragma once

#include "runtime/job.h"

namespace unfoldconv {

// One task of the queue, which enqueues everything: what the plan counts are tasks of the device. Memory is given back
// once that has returned, before the kernels have run: torch's allocator keeps it for the stream.
class LaunchJob : public Job {
 public:
  int64_t queued_tasks() const final { return 1; }
  void prepare(const Call&, char* shared) final { shared_ = shared; }
  void run(const Call& call, Tasks& tasks, char* memory) const final {
    for (int64_t task; tasks.take(task);) enqueue(call.place.stream, memory, shared_);
  }

 protected:
  // In plan().thread_bytes and plan().shared_bytes of memory of the device.
  virtual void enqueue(void* stream, char* memory, char* shared) const = 0;

 private:
  char* shared_ = nullptr;
};

}  // namespace unfoldconv
