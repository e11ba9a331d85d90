#include "runtime/engine.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <utility>

#include "generated/registration.h"
#include "problem/scalar.h"

namespace unfoldconv {
namespace {

constexpr Engine kEngines[] = {Engine::automatic, Engine::columns, Engine::positions, Engine::channels,
                               Engine::depthwise, Engine::grouped, Engine::stem,      Engine::implicit_gemm};

thread_local std::optional<Report> current;
thread_local Engine tried = Engine::automatic;

void force_engine(std::string name) {
  std::string known;
  for (const Engine engine : kEngines) {
    if (name == name_of(engine)) {
      forced_engine() = engine;
      return;
    }
    known += std::string(known.empty() ? "" : ", ") + name_of(engine);
  }
  refuse("engine must be one of " + known + ", but got " + name);
}

}  // namespace

const char* name_of(Engine engine) {
  switch (engine) {
    case Engine::automatic: return "automatic";
    case Engine::columns: return "columns";
    case Engine::positions: return "positions";
    case Engine::channels: return "channels";
    case Engine::depthwise: return "depthwise";
    case Engine::grouped: return "grouped";
    case Engine::stem: return "stem";
    case Engine::implicit_gemm: return "implicit_gemm";
  }
  return "";
}

std::atomic<Engine>& forced_engine() {
  static std::atomic<Engine> engine{Engine::automatic};
  return engine;
}

Trial::Trial(Engine engine) : former_(std::exchange(tried, engine)) {}

Trial::~Trial() { tried = former_; }

bool may_use(Engine engine) {
  const Engine forced = forced_engine(), chosen = forced == Engine::automatic ? tried : forced;
  return chosen == Engine::automatic || chosen == engine;
}

std::vector<Engine> all_engines() { return {std::begin(kEngines), std::end(kEngines)}; }

Report* Report::wanted() { return current ? &*current : nullptr; }

void Report::begin() { current.emplace(); }

std::string Report::end() {
  std::string text = current ? current->text_ : "";
  current.reset();
  return text;
}

void Report::op(const char* name, double flops, double bytes) {
  text_ += std::string("op\tname=") + name + "\tflops=" + std::to_string(static_cast<int64_t>(flops)) +
           "\tbytes=" + std::to_string(static_cast<int64_t>(bytes)) + "\n";
}

void Report::engine(Engine engine, const std::string& tile, int64_t tasks, int64_t thread_bytes, int64_t shared_bytes,
                    const std::string& why, int64_t phases, int64_t splits) {
  text_ += std::string("engine\tname=") + name_of(engine) + "\ttile=" + tile + "\ttasks=" + std::to_string(tasks) +
           "\tthread_bytes=" + std::to_string(thread_bytes) + "\tshared_bytes=" + std::to_string(shared_bytes) +
           "\tphases=" + std::to_string(phases) + "\tsplits=" + std::to_string(splits) + "\twhy=" + why + "\n";
}

}  // namespace unfoldconv

STABLE_TORCH_LIBRARY_FRAGMENT(UNFOLDCONV_NAMESPACE, library) {
  library.def("force_engine(str name) -> ()");
  library.def("begin_report() -> ()");
  library.def("end_report() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("force_engine", TORCH_BOX(&unfoldconv::force_engine));
  library.impl("begin_report", TORCH_BOX(&unfoldconv::Report::begin));
  library.impl("end_report", TORCH_BOX(&unfoldconv::Report::end));
}
