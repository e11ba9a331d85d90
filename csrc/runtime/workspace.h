// The bound on the memory that an op may use beyond its inputs and its output.
#pragma once

#include <atomic>
#include <cstdint>

namespace unfoldconv {

// Bytes a thread may take on the CPU and an op on CUDA; set from Python for the whole process.
struct WorkspaceLimit {
  std::atomic<int64_t> cpu{int64_t{2} << 20};
  std::atomic<int64_t> cuda{int64_t{32} << 20};
};

inline WorkspaceLimit& workspace_limit() {
  static WorkspaceLimit limit;
  return limit;
}

}  // namespace unfoldconv
