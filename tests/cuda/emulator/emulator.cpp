// The scheduler of emulator.h.
#include "emulator.h"

#include <link.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "async_copies.h"

namespace emulator {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr int kPoison = 0xff;

std::string text(const dim3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string text(const Where& where) { return std::string(where.file_name()) + ":" + std::to_string(where.line()); }

dim3 unravel(unsigned flat, const dim3& sizes) {
  return {flat % sizes.x, flat / sizes.x % sizes.y, flat / sizes.x / sizes.y};
}

// --- one block -------------------------------------------------------------------------------------------------------

enum class State { ready, at_barrier, in_warp_function, done };

struct Fiber {
  ucontext_t start;
  jmp_buf place;  // where it waits, once it has begun
  bool begun;
  State state;
  dim3 index;
  // What the thread waits in, or has come out of.
  const char* function;
  Where where;
  unsigned mask;                 // of a warp-wide function
  std::shared_ptr<Lanes> lanes;  // that have come to it
  AsyncCopies copies;
};

struct Memory {
  explicit Memory(size_t bytes)
      : size(bytes), data(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (data == MAP_FAILED) throw std::bad_alloc();
  }
  ~Memory() { munmap(data, size); }
  size_t size;
  void* data;
};

struct Region {
  unsigned char* begin = nullptr;
  size_t size = 0;

  bool holds(const void* address, size_t bytes) const {
    const auto* first = static_cast<const unsigned char*>(address);
    return first >= begin && first + bytes <= begin + size;
  }
};

struct Grid {
  Grid(const Launch& launch, const std::function<void()>& body)
      : body(body),
        fibers(launch.block.x * launch.block.y * launch.block.z),
        stacks(fibers.size() * kStackBytes),
        shared(launch.shared_bytes, true) {}

  const std::function<void()>& body;
  std::vector<Fiber> fibers;
  Memory stacks;
  Guarded shared;
  Region fixed;  // static shared memory
  jmp_buf scheduler;
  Fiber* running = nullptr;
  std::string error;
  sigjmp_buf fault;
};

// The state of the emulator: one launch at a time.
Order order = Order::forward;
unsigned seed = 0;
Grid* grid = nullptr;
Launch latest{};
int64_t launches = 0;
std::string failure;

thread_local char in_thread_storage;  // any variable of this kind tells where this library's part of it lies

// The static shared memory of all kernels, which is this thread's instance of their thread_local variables.
Region static_shared() {
  Region result;
  const auto find = [](dl_phdr_info* info, size_t, void* found) {
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const Region region{static_cast<unsigned char*>(info->dlpi_tls_data), info->dlpi_phdr[i].p_memsz};
      if (info->dlpi_phdr[i].p_type != PT_TLS || !region.holds(&in_thread_storage, 1)) continue;
      *static_cast<Region*>(found) = region;
      return 1;
    }
    return 0;
  };
  if (dl_iterate_phdr(find, &result) == 0) throw std::logic_error("shared memory was not found");
  return result;
}

// From a fiber to the scheduler and back. A context of its own is what a fiber begins in; from then on jumps take it
// from stack to stack, because swapcontext asks the kernel for the mask of signals each time: a third of all time.
void leave() {
  if (_setjmp(grid->running->place) == 0) _longjmp(grid->scheduler, 1);
}

void enter(Fiber& fiber) {
  if (_setjmp(grid->scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.start);
}

void fiber_main() {
  try {
    grid->body();
  } catch (const std::exception& error) {
    grid->error = error.what() + (" [thread " + text(threadIdx) + "]");
  }
  grid->running->state = State::done;
  leave();
}

void wait(State state) {
  grid->running->state = state;
  leave();
}

// Lets the threads at the barrier go on if all stand at the same one.
bool release_barrier() {
  const Fiber* first = nullptr;
  const Fiber* gone = nullptr;
  for (const Fiber& fiber : grid->fibers) {
    if (fiber.state == State::done) gone = &fiber;
    if (fiber.state == State::ready || fiber.state == State::in_warp_function) return false;
    if (fiber.state != State::at_barrier) continue;
    if (first == nullptr) first = &fiber;
    if (fiber.where.line() != first->where.line() ||
        std::strcmp(fiber.where.file_name(), first->where.file_name()) != 0)
      throw std::runtime_error("all threads of a block must wait at the same barrier, but thread " +
                               text(first->index) + " waits at " + text(first->where) + " and thread " +
                               text(fiber.index) + " at " + text(fiber.where));
  }
  if (first == nullptr) return false;
  if (gone != nullptr)
    throw std::runtime_error("all threads of a block must reach a barrier, but thread " + text(gone->index) +
                             " has returned while thread " + text(first->index) + " waits at " + text(first->where));
  for (Fiber& fiber : grid->fibers) fiber.state = State::ready;
  return true;
}

[[noreturn]] void report_deadlock() {
  std::string message = "threads that wait must be released by others, but these wait forever:";
  int named = 0;
  for (const Fiber& fiber : grid->fibers) {
    if (fiber.state == State::done || ++named > 3) continue;
    message += " " + text(fiber.index) + " in " + fiber.function + " at " + text(fiber.where) + ",";
  }
  throw std::runtime_error(message + " " + std::to_string(named) + " in all");
}

void run_block(std::vector<int>& turns, std::mt19937& random) {
  std::memset(grid->shared.data(), kPoison, grid->shared.size());
  std::memset(grid->fixed.begin, kPoison, grid->fixed.size);
  for (size_t i = 0; i < grid->fibers.size(); ++i) {
    Fiber& fiber = grid->fibers[i];
    fiber.begun = false;
    fiber.state = State::ready;
    fiber.index = unravel(i, blockDim);
    fiber.lanes.reset();
    fiber.copies = {};
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = static_cast<char*>(grid->stacks.data) + i * kStackBytes;
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
  }
  while (true) {
    if (order == Order::shuffled) std::shuffle(turns.begin(), turns.end(), random);
    bool progress = false, again = false;
    for (size_t i = 0; i < turns.size(); ++i) {
      Fiber& fiber = grid->fibers[turns[i]];
      if (fiber.state == State::ready) {
        progress = again = true;
        grid->running = &fiber;
        threadIdx = fiber.index;
        enter(fiber);
        if (!grid->error.empty()) throw std::runtime_error(grid->error);
      }
      const bool end_of_warp = i % 32 == 31 || i + 1 == turns.size();
      if (order != Order::by_warp || !end_of_warp) continue;
      if (again) i = i / 32 * 32 - 1;
      again = false;
    }
    if (std::all_of(grid->fibers.begin(), grid->fibers.end(), [](auto& fiber) { return fiber.state == State::done; }))
      return;
    if (!release_barrier() && !progress) report_deadlock();
  }
}

void run_grid(const Launch& launch) {
  std::mt19937 random(seed);
  const auto sequence = [&](int64_t count) {
    std::vector<int> result(count);
    std::iota(result.begin(), result.end(), 0);
    if (order == Order::reverse) std::reverse(result.begin(), result.end());
    if (order == Order::shuffled) std::shuffle(result.begin(), result.end(), random);
    return result;
  };
  gridDim = launch.grid;
  blockDim = launch.block;
  grid->fixed = static_shared();
  std::vector<int> turns = sequence(grid->fibers.size());
  for (const int block : sequence(int64_t{launch.grid.x} * launch.grid.y * launch.grid.z)) {
    blockIdx = unravel(block, launch.grid);
    run_block(turns, random);
  }
}

// --- faults ----------------------------------------------------------------------------------------------------------

// A signal of the thread that runs ends the launch instead of the process.
void on_fault(int signal, siginfo_t* info, void*) {
  grid->error = signal == SIGSEGV || signal == SIGBUS
                    ? "memory outside of buffers must not be touched, but " + describe(info->si_addr) + " was"
                    : "an index must lie inside of its array, a pointer must be aligned and an integer must not "
                      "overflow, but one did not";
  grid->error += " [thread " + text(threadIdx) + "]";
  siglongjmp(grid->fault, 1);
}

class FaultHandler {
 public:
  FaultHandler() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &previous_[i]);
  }
  ~FaultHandler() {
    for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &previous_[i], nullptr);
  }

 private:
  static constexpr std::array<int, 4> kSignals = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};  // traps of the sanitizer: SIGILL
  std::array<struct sigaction, kSignals.size()> previous_;
};

// Returns what went wrong, or nothing.
std::optional<std::string> run_on_this_thread(const Launch& launch) {
  FaultHandler handler;
  if (sigsetjmp(grid->fault, 1) == 0) {
    try {
      run_grid(launch);
      return std::nullopt;
    } catch (const std::exception& error) {
      grid->error = error.what();
    }
  }
  return grid->error + " [block " + text(blockIdx) + " of " + text(gridDim) + "]";
}

bool is_valid(const Launch& launch) {
  const auto numel = [](const dim3& size) { return uint64_t{size.x} * size.y * size.z; };
  const uint64_t threads = numel(launch.block);
  return numel(launch.grid) > 0 && launch.grid.x <= 0x7fffffff && launch.grid.y <= 65535 && launch.grid.z <= 65535 &&
         threads > 0 && threads <= 1024 && launch.block.z <= 64 && launch.shared_bytes <= (227 << 10);
}

}  // namespace

// --- the interface ---------------------------------------------------------------------------------------------------

void set_schedule(Order new_order, unsigned new_seed) {
  order = new_order;
  seed = new_seed;
}

const char* last_error() { return failure.c_str(); }
const Launch& last_launch() { return latest; }
int64_t launch_count() { return launches; }

int launch(const Launch& launch, const std::function<void()>& body) {
  ++launches;
  latest = launch;
  if (!is_valid(launch)) {
    failure = "a launch must stay within the limits of CUDA, but has grid " + text(launch.grid) + ", block " +
              text(launch.block) + " and " + std::to_string(launch.shared_bytes) + " bytes of shared memory";
    return 9;
  }
  Grid state(launch, body);
  grid = &state;
  std::optional<std::string> error;
  // A thread of its own, so that its thread_local variables are shared memory and nothing else.
  std::thread([&] { error = run_on_this_thread(launch); }).join();
  grid = nullptr;
  if (!error) return 0;
  failure = *error;
  return 719;
}

void* dynamic_shared() { return grid->shared.data(); }

AsyncCopies& async_copies() { return grid->running->copies; }

void check_shared(const char* instruction, const void* address, size_t bytes) {
  if (!grid->fixed.holds(address, bytes) && !Region{grid->shared.data(), grid->shared.size()}.holds(address, bytes))
    throw std::runtime_error(std::string(instruction) + " must have an address in shared memory, but has another");
}

void block_barrier(Where where) {
  grid->running->function = "__syncthreads";
  grid->running->where = where;
  wait(State::at_barrier);
}

std::shared_ptr<const Lanes> warp_exchange_bytes(const char* name, unsigned mask, const void* value, size_t size,
                                                 Where where) {
  Fiber& self = *grid->running;
  const size_t first = (&self - grid->fibers.data()) / 32 * 32;
  const size_t width = std::min<size_t>(32, grid->fibers.size() - first);
  Fiber* warp = &grid->fibers[first];
  if (width < 32) mask &= (1u << width) - 1;  // lanes that a short last warp lacks
  if ((mask >> lane() & 1) == 0) throw std::runtime_error(std::string("the mask of ") + name + " must name its caller");

  self.function = name;
  self.mask = mask;
  self.where = where;
  self.lanes.reset();
  for (size_t i = 0; i < width && !self.lanes; ++i) {
    const Fiber& other = warp[i];
    if (other.state != State::in_warp_function || other.mask != mask || std::strcmp(other.function, name) != 0)
      continue;
    self.lanes = other.lanes;
  }
  if (!self.lanes) self.lanes = std::make_shared<Lanes>();
  std::memcpy(self.lanes->bytes[lane()].data(), value, size);
  self.lanes->present |= 1u << lane();
  if (self.lanes->present == mask) {
    for (size_t i = 0; i < width; ++i)
      if (&warp[i] != &self && warp[i].lanes == self.lanes) warp[i].state = State::ready;
  } else {
    wait(State::in_warp_function);
  }
  return std::move(self.lanes);
}

}  // namespace emulator
