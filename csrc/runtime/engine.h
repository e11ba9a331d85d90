// An engine is one algorithm, and a row of a table (dispatch/engine_tables.h): what it may look at, and what it is
// asked.
#pragma once

#include "problem/correlation.h"
#include "problem/weight_grad.h"
#include "runtime/job.h"

namespace unfoldconv {

// A problem as it looks without its batch. Which engine computes an image must not depend on the others, because
// engines round differently.
template <class Problem>
class OneImage {
 public:
  explicit OneImage(const Problem& problem) : problem_(problem) { leave_one_image(problem_); }
  const Problem* operator->() const { return &problem_; }
  const Problem& operator*() const { return problem_; }

 private:
  static void leave_one_image(Correlation<3>& problem) {
    problem.image.layout.count[0] = problem.output.layout.count[0] = 1;
  }
  static void leave_one_image(InputGrad<3>& problem) {
    problem.grad_output.layout.count[0] = problem.grad_input.layout.count[0] = 1;
  }
  static void leave_one_image(WeightGrad<3>& problem) {
    problem.grad_output.layout.count[0] = problem.image.layout.count[0] = 1;
  }

  Problem problem_;
};

// An engine, which is one algorithm.
template <class Problem>
struct Engine {
  const char *name, *family;  // "positions.lines" and "positions"
  // Whether axes of a pointwise window are made one for it where they are one in memory (merge_axes in geometry.h).
  bool merges_axes;
  // Says in words why the engine does not take a problem, or null.
  const char* (*declines)(const OneImage<Problem>& problem);
  // Plans a problem that it does not decline, as a job in the slot; or says why it cannot. The reason may depend on
  // the workspace limit, but like the other not on the batch, nor on the number of threads.
  const char* (*plan)(const Problem& problem, const Call& call, JobSlot& slot);
};

using CorrelateEngine = Engine<Correlation<3>>;
using InputGradEngine = Engine<InputGrad<3>>;
using WeightGradEngine = Engine<WeightGrad<3>>;

}  // namespace unfoldconv
