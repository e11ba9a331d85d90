// Runs a problem by the first engine of a table that takes it.
#pragma once

#include <optional>
#include <span>

#include "dispatch/choice.h"
#include "dispatch/engine_tables.h"
#include "runtime/report.h"
#include "runtime/workspace.h"

namespace unfoldconv {

// The problems as an engine that merges axes sees them.
inline void merge_axes(Correlation<3>& problem) {
  merge_axes(problem.geometry, problem.image.layout, problem.output.layout);
}
inline void merge_axes(InputGrad<3>&) {}
inline void merge_axes(WeightGrad<3>& problem) {
  merge_axes(problem.geometry, problem.image.layout, problem.grad_output.layout);
}

// Whether there is nothing to add up.
inline bool sums_nothing(const Correlation<3>& problem) {
  return problem.channels() * problem.geometry.tap_numel() == 0;
}
inline bool sums_nothing(const InputGrad<3>&) { return false; }
inline bool sums_nothing(const WeightGrad<3>&) { return false; }

inline void run_job(const Call& call, Job& job) {
  const Plan& plan = job.plan();
  const bool cuda = call.place.cuda;
  const Scratch shared(plan.shared_bytes, call.like, cuda);
  job.prepare(call, shared.data_ptr());
  const int64_t count = job.queued_tasks();
  Tasks tasks(count);
  const auto run = [&](int64_t, int64_t) {
    const Scratch memory(plan.thread_bytes, call.like, cuda);
    job.run(call, tasks, memory.data_ptr());
  };
  if (cuda || plan.serial || count == 1)
    run(0, count);
  else if (count > 0)
    torch::stable::parallel_for(0, count, 1, run);
  job.finish(call);
}

// Why an engine cannot take a problem, or null with its job in the slot.
template <class Problem>
const char* ask(const Engine<Problem>& engine, bool fallback, const Problem& problem, const OneImage<Problem>& image,
                const Call& call, JobSlot& slot) {
  if (!fallback) {
    if (const char* reason = excluded_by_choice(engine.name, engine.family)) return reason;
    if (sums_nothing(*image)) return "empty reductions fall through to the columns engine";
    if (may_overflow_index(image->geometry)) return "windows reach so far that products of sizes may overflow";
  }
  const char* reason = engine.declines == nullptr ? nullptr : engine.declines(image);
  if (reason == nullptr) reason = engine.plan(problem, call, slot);
  if (reason == nullptr && !fallback && !call.place.cuda && slot.job().plan().thread_bytes > workspace_limit().cpu)
    reason = "a task does not fit into the workspace limit";
  return reason;
}

// Returns false, with nothing done, where every engine declines. The last one is the fallback if `has_fallback`: no
// choice, size or limit excludes it.
template <class Problem>
bool run_first(std::span<const Engine<Problem>> engines, bool has_fallback, const Problem& problem, const Call& call) {
  struct View {
    Problem problem;
    OneImage<Problem> image;
  };
  const OneImage<Problem> image(problem);
  std::optional<View> merged;
  JobSlot slot;
  Report* const report = Report::wanted();
  const char* chosen = nullptr;
  Plan plan;
  for (const Engine<Problem>& engine : engines) {
    if (engine.merges_axes && !merged) {
      Problem copy = problem;
      merge_axes(copy);
      merged.emplace(copy, OneImage<Problem>(copy));
    }
    const bool fallback = has_fallback && &engine == &engines.back();
    const char* const reason = engine.merges_axes ? ask(engine, fallback, merged->problem, merged->image, call, slot)
                                                  : ask(engine, fallback, problem, image, call, slot);
    if (report != nullptr && report->considered()) report->consider(engine.name, reason);
    if (reason != nullptr || chosen != nullptr) continue;
    if (report == nullptr) {
      run_job(call, slot.job());
      return true;
    }
    chosen = engine.name, plan = slot.job().plan();
    if (!report->considered()) break;
  }
  if (chosen != nullptr) report->engine(chosen, plan);
  return chosen != nullptr;
}

}  // namespace unfoldconv
