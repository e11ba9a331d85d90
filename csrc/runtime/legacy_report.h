#pragma once

#include <string>

#include "runtime/job.h"

namespace unfoldconv {

struct LegacyReport {
  Plan plan;
  std::string why_, tile_;
  static LegacyReport*& current() {
    static thread_local LegacyReport* report = nullptr;
    return report;
  }
  static LegacyReport* wanted() { return current(); }
  void begin() { current() = this; }
  void end() { current() = nullptr; }
  void engine(const std::string& tile, int64_t tasks, int64_t thread_bytes, int64_t shared_bytes, const char* why,
              int64_t phases = 1, int64_t splits = 1) {
    const size_t x = tile.find('x');
    if (x != std::string::npos)
      plan.tile_rows = std::stoll(tile.substr(0, x)), plan.tile_lanes = std::stoll(tile.substr(x + 1));
    plan.tasks = tasks, plan.thread_bytes = thread_bytes, plan.shared_bytes = shared_bytes;
    plan.why = why, plan.phases = phases, plan.splits = splits;
  }
};

namespace cpu {

template <class Carve, class Body>
void run_tasks(int64_t tasks, bool serial, const Tensor& like, const Carve& carve, const Body& body) {
  Tasks queue(tasks);
  const auto run = [&](int64_t, int64_t) {
    Carver count;
    carve(count);
    const Scratch memory(count.bytes(), like);
    Carver carver(memory.data_ptr());
    const auto buffers = carve(carver);
    for (int64_t task; queue.take(task);) body(task, buffers);
  };
  if (serial || tasks == 1)
    run(0, tasks);
  else if (tasks > 0)
    torch::stable::parallel_for(0, tasks, 1, run);
}

}  // namespace cpu

}  // namespace unfoldconv
