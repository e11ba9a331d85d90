#include "dispatch/choice.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <string_view>
#include <utility>

#include "dispatch/engine_tables.h"
#include "generated/registration.h"
#include "problem/scalar.h"

namespace unfoldconv {
namespace {

std::atomic<const char*> forced{nullptr};  // a string of the tables
thread_local const char* tried = nullptr;

// Calls f(name, family) with those of every engine of a device.
template <class F>
void for_each_engine(const Engines& engines, const F& f) {
  for (const auto& engine : engines.correlate) f(engine.name, engine.family);
  for (const auto& engine : engines.input_grad) f(engine.name, engine.family);
  for (const auto& engine : engines.weight_grad) f(engine.name, engine.family);
}

std::vector<const Engines*> all_devices() {
#ifdef UNFOLDCONV_WITH_CUDA
  return {&cpu_engines(), &cuda_engines()};
#else
  return {&cpu_engines()};
#endif
}

bool contains(const std::vector<const char*>& names, std::string_view name) {
  return std::any_of(names.begin(), names.end(), [&](const char* other) { return other == name; });
}

}  // namespace

void force_engine(std::string name) {
  if (name == "automatic") {
    forced = nullptr;
    return;
  }
  std::vector<const char*> names;
  for (const Engines* engines : all_devices())
    for_each_engine(*engines, [&](const char* engine, const char* family) {
      for (const char* each : {family, engine})
        if (!contains(names, each)) names.push_back(each);
    });
  std::string known = "automatic";
  for (const char* each : names) {
    if (name == each) {
      forced = each;
      return;
    }
    known += std::string(", ") + each;
  }
  refuse("engine must be one of " + known + ", but got " + name);
}

bool is_engine_forced() { return forced.load(std::memory_order_relaxed) != nullptr; }

std::vector<const char*> engine_names(bool cuda) {
  std::vector<const char*> names;
  for_each_engine(engines_of({cuda, nullptr}), [&](const char* engine, const char*) {
    if (!contains(names, engine)) names.push_back(engine);
  });
  return names;
}

Trial::Trial(const char* engine) : former_(std::exchange(tried, engine)) {}

Trial::~Trial() { tried = former_; }

const char* excluded_by_choice(const char* engine, const char* family) {
  const auto other = [&](std::string_view chosen) { return chosen != engine && chosen != family; };
  if (const char* const choice = forced.load(std::memory_order_relaxed))
    return other(choice) ? "another engine is forced" : nullptr;
  return tried != nullptr && other(tried) ? "another engine was the fastest in trials" : nullptr;
}

bool is_family_excluded(const char* family) {
  const char* choice = forced.load(std::memory_order_relaxed);
  if (choice == nullptr) choice = tried;
  const std::string_view chosen = choice != nullptr ? choice : family;
  return chosen.substr(0, chosen.find('.')) != family;
}

}  // namespace unfoldconv

STABLE_TORCH_LIBRARY_FRAGMENT(UNFOLDCONV_NAMESPACE, library) {
  library.def("force_engine(str name) -> ()");
  library.def("engines(bool cuda) -> str");
}

namespace {

// As the op returns them: one line.
std::string joined_engine_names(bool cuda) {
  std::string result;
  for (const char* name : unfoldconv::engine_names(cuda)) result += std::string(result.empty() ? "" : " ") + name;
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("force_engine", TORCH_BOX(&unfoldconv::force_engine));
  library.impl("engines", TORCH_BOX(&joined_engine_names));
}
