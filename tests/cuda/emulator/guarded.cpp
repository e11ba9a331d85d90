// Guarded buffers of emulator.h.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <set>

#include "emulator.h"

namespace emulator {
namespace {

constexpr size_t kGuardBytes = 16 << 20;

std::set<const Guarded*> buffers;

}  // namespace

Guarded::Guarded(size_t bytes, bool guard_end) : size_(bytes) {
  const size_t page = sysconf(_SC_PAGESIZE);
  const size_t usable = (std::max<size_t>(bytes, 1) + page - 1) / page * page;
  mapped_ = kGuardBytes + usable + kGuardBytes;
  void* mapping = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<unsigned char*>(mapping);
  data_ = mapping_ + kGuardBytes;
  mprotect(data_, usable, PROT_READ | PROT_WRITE);
  if (guard_end) data_ += usable - bytes;
  buffers.insert(this);
}

Guarded::~Guarded() {
  buffers.erase(this);
  munmap(mapping_, mapped_);
}

std::string describe(const void* address) {
  const auto* byte = static_cast<const unsigned char*>(address);
  for (const Guarded* buffer : buffers) {
    const auto* end = buffer->data() + buffer->size();
    const std::string name = " a buffer of " + std::to_string(buffer->size()) + " bytes";
    if (byte >= end && byte - end < static_cast<int64_t>(kGuardBytes))
      return "byte " + std::to_string(byte - end) + " behind" + name;
    if (byte < buffer->data() && buffer->data() - byte <= static_cast<int64_t>(kGuardBytes))
      return "byte " + std::to_string(buffer->data() - byte) + " before" + name;
  }
  return "memory far from any";
}

}  // namespace emulator
