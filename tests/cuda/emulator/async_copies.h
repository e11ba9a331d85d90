// Copies from global to shared memory that go on while their thread does other things (cp.async).
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

namespace emulator {

// Those of one thread. From its beginning to the end of the wait for it, a copy leaves bytes in shared memory that mean
// nothing (0xff): who reads them too early, or still wanted what they replaced, computes with NaN.
class AsyncCopies {
 public:
  void issue(void* shared, const void* global, size_t bytes, size_t source_bytes);
  void commit();
  void wait(size_t groups);  // until at most so many groups are under way

 private:
  struct Copy {
    unsigned char* to;
    std::vector<unsigned char> bytes;
  };
  using Group = std::vector<Copy>;

  Group open_;
  std::deque<Group> groups_;
};

AsyncCopies& async_copies();  // of the thread that runs

// Errors of the launch, where an instruction would fault: its name stands in them.
void check_aligned(const char* instruction, const void* address, size_t bytes);
void check_shared(const char* instruction, const void* address, size_t bytes);

}  // namespace emulator
