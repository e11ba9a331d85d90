#include "async_copies.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace emulator {

void AsyncCopies::issue(void* shared, const void* global, size_t bytes, size_t source_bytes) {
  check_aligned("cp_async", shared, bytes);
  check_aligned("cp_async", global, bytes);
  check_shared("cp_async", shared, bytes);
  if (source_bytes > bytes)
    throw std::runtime_error("cp_async must not read more than " + std::to_string(bytes) + " bytes, but was told " +
                             std::to_string(source_bytes));
  Copy copy{static_cast<unsigned char*>(shared), std::vector<unsigned char>(bytes)};
  std::memcpy(copy.bytes.data(), global, source_bytes);
  std::memset(shared, 0xff, bytes);
  open_.push_back(std::move(copy));
}

void AsyncCopies::commit() {
  groups_.push_back(std::move(open_));
  open_.clear();
}

void AsyncCopies::wait(size_t groups) {
  while (groups_.size() > groups) {
    for (const Copy& copy : groups_.front()) std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
    groups_.pop_front();
  }
}

void check_aligned(const char* instruction, const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    throw std::runtime_error(std::string(instruction) + " must have addresses that are multiples of " +
                             std::to_string(bytes) + ", but one is not");
}

}  // namespace emulator
