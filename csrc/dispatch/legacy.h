// Engines that still report, allocate and decline on their own, in the clothes of the new ones. To be removed.
#pragma once

#include <string>

#include "dispatch/engine_tables.h"
#include "runtime/legacy_report.h"

namespace unfoldconv {

template <class Problem, auto function>
class LegacyJob : public Job {
 public:
  LegacyJob(const Problem& problem, const Plan& plan) : problem_(problem) {
    plan_ = plan;
    plan_.serial = true;
  }
  int64_t queued_tasks() const override { return 1; }
  void prepare(const Call&, char*) override {}
  void run(const Call& call, Tasks& tasks, char*) const override {
    for (int64_t task; tasks.take(task);) function(call.place, problem_);
  }

 private:
  const Problem& problem_;
};

template <class Problem, auto function>
const char* plan_legacy(const Problem& problem, const Call& call, JobSlot& slot) {
  const_cast<Problem&>(problem).like = &call.like;
  LegacyReport report;
  report.begin();
  const bool takes = function(call.place, problem);
  report.end();
  if (!takes) return "the engine declines";
  slot.emplace<LegacyJob<Problem, function>>(problem, report.plan);
  return nullptr;
}

}  // namespace unfoldconv
