// A problem that an engine has planned: how it is cut up, the memory that this takes, and the code that runs it.
//
// The engine says what it needs; the driver (dispatch/driver.h) checks it against the limit, allocates it, and runs the
// job, or tells a report of its plan.
#pragma once

#include <new>
#include <type_traits>
#include <utility>

#include "runtime/place.h"
#include "runtime/tasks.h"

namespace unfoldconv {

struct Plan {
  const char* why = "";                   // what the engine does, and what for
  int64_t tile_rows = 0, tile_lanes = 0;  // of the micro-kernel, on CUDA of a block; 0 where there is no such thing
  int64_t tasks = 0;                      // parts that threads take, on CUDA blocks
  int64_t thread_bytes = 0;               // workspace of each thread, on CUDA of the op
  int64_t shared_bytes = 0;               // beside it: packed weights, partial sums
  int64_t copied_bytes = 0;               // of a copy of the weight that was made before, for this and other jobs
  bool serial = false;                    // too little work for a second thread
  int64_t phases = 1, splits = 1;         // on CUDA: of a stride, in one launch; tasks that add to the longest sums
};

// Where a problem is computed, and a tensor whose allocator and device give its memory.
struct Call {
  Place place;
  const Tensor& like;
};

// Keeps a reference to its problem.
class Job {
 public:
  virtual ~Job() = default;

  const Plan& plan() const { return plan_; }
  // How many tasks the driver hands out. On CUDA that is one: its blocks are tasks of the device.
  virtual int64_t queued_tasks() const { return plan_.tasks; }

  // Makes what all tasks read, in plan().shared_bytes of memory, which stays until finish() has returned.
  virtual void prepare(const Call& call, char* shared) = 0;
  // Runs tasks until none are left, in plan().thread_bytes of memory. Threads call it side by side.
  virtual void run(const Call& call, Tasks& tasks, char* memory) const = 0;
  // What is to be done when all tasks are.
  virtual void finish(const Call&) {}

 protected:
  Plan plan_;
};

// A job of the CPU, or of the columns anywhere: Own has
//
//   Buffers buffers(Carver&) const;                       // what a thread needs
//   void share(Carver&);                                  // binds its members to what all tasks read
//   void fill(const Call&);                               // and makes it
//   void run_task(const Call&, int64_t task, const Buffers&) const;
//
// and calls measure() when it is planned.
template <class Own>
class TaskJob : public Job {
 public:
  void prepare(const Call& call, char* shared) final {
    Carver carver(shared);
    own().share(carver);
    own().fill(call);
  }

  void run(const Call& call, Tasks& tasks, char* memory) const final {
    Carver carver(memory);
    const auto buffers = own().buffers(carver);
    for (int64_t task; tasks.take(task);) own().run_task(call, task, buffers);
  }

 protected:
  void measure() {
    Carver thread, shared;
    own().buffers(thread);
    own().share(shared);
    plan_.thread_bytes = thread.bytes();
    plan_.shared_bytes = shared.bytes();
  }

 private:
  Own& own() { return static_cast<Own&>(*this); }
  const Own& own() const { return static_cast<const Own&>(*this); }
};

// Room for one job at a time, so that a small call allocates none.
class JobSlot {
 public:
  JobSlot() = default;
  ~JobSlot() { clear(); }
  JobSlot(const JobSlot&) = delete;
  JobSlot& operator=(const JobSlot&) = delete;

  template <class J, class... Arguments>
  J& emplace(Arguments&&... arguments) {
    static_assert(sizeof(J) <= kBytes && alignof(J) <= kAlignment);
    clear();
    J* const job = ::new (memory_) J(std::forward<Arguments>(arguments)...);
    job_ = job;
    return *job;
  }
  Job& job() { return *job_; }

 private:
  static constexpr int64_t kBytes = 4096;

  void clear() {
    if (job_ != nullptr) std::exchange(job_, nullptr)->~Job();
  }

  alignas(kAlignment) char memory_[kBytes];
  Job* job_ = nullptr;
};

}  // namespace unfoldconv
