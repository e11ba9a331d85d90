// Which engine computes a convolution: what tests and benchmarks may force, and what `unfoldconv.explain` is told.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace unfoldconv {

enum class Engine { automatic, columns, positions, channels, depthwise, grouped, stem, implicit_gemm };

const char* name_of(Engine engine);

// The engine that every call uses if it can, else `automatic`. For the whole process.
std::atomic<Engine>& forced_engine();

// The engine that the calls of this thread use while it lives, unless one is forced.
class Trial {
 public:
  explicit Trial(Engine engine);
  ~Trial();
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;

 private:
  Engine former_;
};

// Whether the choice is free or fell on this one.
bool may_use(Engine engine);

// `automatic` among them.
std::vector<Engine> all_engines();

// Collects what the ops of one thread would do, instead of doing it.
class Report {
 public:
  // That of this thread, or null if its ops are to run.
  static Report* wanted();

  // Begins and ends a report of this thread. The text has a line for each op ("op", then fields) and for each use of an
  // engine in it ("engine", then fields), a field being name=value between tabs.
  static void begin();
  static std::string end();

  void op(const char* name, double flops, double bytes);
  // `tile` is rows x lanes of the micro-kernel or empty; `thread_bytes` the workspace of each thread and `shared_bytes`
  // what is beside: packed weights and the like. `phases` of a stride are computed together, and the longest sums are
  // those of `splits` tasks.
  void engine(Engine engine, const std::string& tile, int64_t tasks, int64_t thread_bytes, int64_t shared_bytes,
              const std::string& why, int64_t phases = 1, int64_t splits = 1);

 private:
  std::string text_;
};

}  // namespace unfoldconv
