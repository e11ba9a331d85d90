// The trials of autotune.h. An engine that is found is kept for the life of the process.
#include "dispatch/autotune.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "dispatch/choice.h"
#include "generated/registration.h"
#include "runtime/report.h"
#ifdef UNFOLDCONV_WITH_CUDA
#include "cuda/shared/stream.h"
#endif

namespace unfoldconv {
namespace {

constexpr int kRounds = 3;
constexpr double kHopeless = 4;       // times the fastest first run: not tried again
constexpr double kWorthwhile = 0.95;  // of the time of the engine that is picked without a trial

std::atomic<bool> enabled{false};
std::mutex mutex;
std::map<TuningKey, const char*> fastest_engines;  // null is the choice of the tables; under the mutex

std::optional<const char*> known(const TuningKey& key) {
  const std::lock_guard lock(mutex);
  const auto found = fastest_engines.find(key);
  if (found == fastest_engines.end()) return std::nullopt;
  return found->second;
}

// Whether the engine computes the op, or any part of it, if it may.
bool takes_part(const char* engine, const std::function<void()>& run) {
  const Trial trial(engine);
  Report::begin(/*considered=*/false);
  run();
  return Report::end().find(std::string("engine\tname=") + engine + "\t") != std::string::npos;
}

void wait([[maybe_unused]] const Place& place) {
#ifdef UNFOLDCONV_WITH_CUDA
  if (place.cuda) cuda::synchronize(place.stream);
#endif
}

double seconds_of(const Place& place, const char* engine, const std::function<void()>& run) {
  const Trial trial(engine);
  wait(place);
  const auto begin = std::chrono::steady_clock::now();
  run();
  wait(place);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

const char* fastest(const Place& place, const std::function<void()>& run) {
  struct Candidate {
    const char* engine;
    double seconds;
  };
  std::vector<Candidate> candidates{{nullptr, 0}};
  for (const char* engine : engine_names(place.cuda))
    if (takes_part(engine, run)) candidates.push_back({engine, 0});
  const auto faster = [](const Candidate& a, const Candidate& b) { return a.seconds < b.seconds; };
  // The first run of an engine also loads its code and fills caches, so it only tells whether to go on with it.
  for (Candidate& candidate : candidates) candidate.seconds = seconds_of(place, candidate.engine, run);
  const double limit = kHopeless * std::min_element(candidates.begin(), candidates.end(), faster)->seconds;
  std::erase_if(candidates, [&](const Candidate& c) { return c.engine != nullptr && c.seconds > limit; });
  for (Candidate& candidate : candidates) candidate.seconds = std::numeric_limits<double>::infinity();
  for (int round = 0; round < kRounds; ++round)
    for (Candidate& candidate : candidates)
      candidate.seconds = std::min(candidate.seconds, seconds_of(place, candidate.engine, run));
  const Candidate& best = *std::min_element(candidates.begin(), candidates.end(), faster);
  return best.seconds < kWorthwhile * candidates[0].seconds ? best.engine : nullptr;
}

bool may_try([[maybe_unused]] const Place& place) {
#ifdef UNFOLDCONV_WITH_CUDA
  if (place.cuda && cuda::is_capturing(place.stream)) return false;  // a graph would hold every trial
#endif
  return Report::wanted() == nullptr && !is_engine_forced();
}

void set_tuning(bool on) { enabled = on; }

}  // namespace

TuningKey::TuningKey(std::initializer_list<const torch::stable::Tensor*> operands, std::vector<int64_t> numbers)
    : numbers_(std::move(numbers)) {
  const torch::stable::Tensor& first = **operands.begin();
  const bool cuda = first.is_cuda();
  numbers_.push_back(static_cast<int64_t>(first.scalar_type()));
  numbers_.push_back(cuda ? first.get_device_index() : -1 - int64_t{torch::stable::get_num_threads()});
  for (const torch::stable::Tensor* operand : operands) {
    numbers_.push_back(operand->dim());
    for (int64_t axis = 0; axis < operand->dim(); ++axis) {
      numbers_.push_back(operand->size(axis));
      numbers_.push_back(operand->stride(axis));
    }
  }
}

bool tuning() { return enabled.load(std::memory_order_relaxed); }

void run_tuned(const Place& place, const TuningKey& key, const std::function<void()>& run) {
  std::optional<const char*> engine = known(key);
  if (!engine && may_try(place)) {
    engine = fastest(place, run);
    const std::lock_guard lock(mutex);
    fastest_engines.emplace(key, *engine);
  }
  const Trial trial(engine.value_or(nullptr));
  run();
}

}  // namespace unfoldconv

STABLE_TORCH_LIBRARY_FRAGMENT(UNFOLDCONV_NAMESPACE, library) {
  library.def("set_tuning(bool on) -> ()");
  library.def("get_tuning() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("set_tuning", TORCH_BOX(&unfoldconv::set_tuning));
  library.impl("get_tuning", TORCH_BOX(&unfoldconv::tuning));
}
