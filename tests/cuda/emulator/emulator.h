// A GPU on the CPU, to prove what a kernel computes: indexing, bounds, barriers. It says nothing about speed.
//
// Blocks run one after another. Each thread of a block is a fiber, which runs until it meets a barrier or a warp-wide
// function; which one goes first is the schedule's choice. Shared memory is filled with 0xff (NaN) before each block.
// What goes wrong ends the launch with an error and a sentence: a barrier that not all threads reach, lanes of a warp
// that disagree, memory touched outside of a Guarded buffer, an index outside of an array, overflow of an integer.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
using uint3 = dim3;

// Of the thread that runs; set whenever the scheduler switches to it.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulator {

// --- launching -------------------------------------------------------------------------------------------------------

// The first three take turns, thread by thread; by_warp lets a warp run as far ahead of the next one as it can.
enum class Order { forward, reverse, shuffled, by_warp };

// The order of threads and blocks in the launches to come.
void set_schedule(Order order, unsigned seed);

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  const char* kernel;  // mangled type of the kernel function
};

// Runs a grid; returns 0 or the error code of CUDA that comes nearest.
int launch(const Launch& launch, const std::function<void()>& thread_body);

const char* last_error();     // of the launch that failed last
const Launch& last_launch();  // the last one of all
int64_t launch_count();       // since the start

// --- faults ----------------------------------------------------------------------------------------------------------

// The fault that the kernels of an edited copy have at present, of those that were planted in it; empty: none.
inline std::string fault;

inline bool planted(const char* name) { return fault == name; }

// --- what a kernel may call ------------------------------------------------------------------------------------------

using Where = std::source_location;

// The dynamic shared memory of the block. It ends where memory that may not be touched begins.
void* dynamic_shared();

// Waits until every thread of the block stands at this barrier.
void block_barrier(Where where);

inline int lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }

// What each lane brought to a warp-wide function: up to 64 bytes, as much as a matrix fragment takes.
struct Lanes {
  unsigned present = 0;
  std::array<std::array<unsigned char, 64>, 32> bytes;

  bool has(int lane) const { return present >> lane & 1; }

  template <class T>
  T get(int lane) const {
    if (!has(lane)) throw std::runtime_error("lane " + std::to_string(lane) + " must take part to be read");
    T value;
    std::memcpy(&value, bytes[lane].data(), sizeof(T));
    return value;
  }
};

std::shared_ptr<const Lanes> warp_exchange_bytes(const char* name, unsigned mask, const void* value, size_t size,
                                                 Where where);

// Waits until every lane of the mask has come to this very function with the same mask, and shows what they brought.
// All warp-wide functions are made of this one.
template <class T>
std::shared_ptr<const Lanes> warp_exchange(const char* name, unsigned mask, const T& value, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 64);
  return warp_exchange_bytes(name, mask, &value, sizeof(T), where);
}

// --- memory ----------------------------------------------------------------------------------------------------------

// Memory that ends (or begins) right beside a region that may not be touched, on either side of which lie 16 MiB more.
class Guarded {
 public:
  Guarded(size_t bytes, bool guard_end);
  ~Guarded();
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  unsigned char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  unsigned char *data_, *mapping_;
  size_t size_, mapped_;
};

// Where an address that may not be touched lies, seen from the buffer whose guards it is in.
std::string describe(const void* address);

}  // namespace emulator
