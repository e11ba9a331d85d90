// Fewer page faults for large tensors.
#pragma once

#include <cstdint>
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace unfoldconv::cpu {

// malloc returns blocks from about this size on to the system when they are freed, so that every call would fault in
// each of their pages anew; and as pages of 4 KB these faults take longer than writing them does.
constexpr int64_t kHugeBytes = int64_t{32} << 20;

// Asks the system to back memory, before it is first written, with pages of 2 MB. It may refuse.
inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  constexpr int64_t page = int64_t{2} << 20;
  const auto address = reinterpret_cast<int64_t>(data);
  const int64_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace unfoldconv::cpu
