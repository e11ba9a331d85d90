// The problems of the tables as the depthwise engines see them, and what both of these decline.
#pragma once

#include "cpu/depthwise/depthwise_blocks.h"
#include "cpu/depthwise/depthwise_engine.h"

namespace unfoldconv::cpu::depthwise {

// output = bias + the correlation that the axes describe.
struct Sums {
  Axis axes[3];
  int64_t kernel[3], batch;
  Operand source, output;
  Planes<3> weight;  // (group, channel of the result, channel of the source)
  const char* bias;
  Blocks blocks;
};

// The gradient of its weight, from that of the output.
struct WeightSums {
  Axis axes[3];
  int64_t kernel[3], batch;
  Operand image, grad;
  char* grad_weight;
  Blocks blocks;
};

inline Blocks blocks_of(const Planes<3>& planes) {
  const auto& count = planes.layout.count;
  return Blocks(count[1] * count[2], count[2], planes.dtype);
}

inline Sums sums_of(const Correlation<3>& p) {
  const Geometry<3>& g = p.geometry;
  return {{forward_axis(g, 0), forward_axis(g, 1), forward_axis(g, 2)},
          {g.kernel[0], g.kernel[1], g.kernel[2]},
          p.batch(),
          Operand(p.image),
          Operand(p.output),
          p.weight,
          p.bias,
          blocks_of(p.image)};
}

inline Sums sums_of(const InputGrad<3>& p) {
  const Geometry<3>& g = p.geometry;
  return {{backward_axis(g, 0), backward_axis(g, 1), backward_axis(g, 2)},
          {g.kernel[0], g.kernel[1], g.kernel[2]},
          p.grad_input.layout.count[0],
          Operand(p.grad_output),
          Operand(p.grad_input),
          p.weight,
          p.bias,
          blocks_of(p.grad_input)};
}

inline WeightSums sums_of(const WeightGrad<3>& p) {
  const Geometry<3>& g = p.geometry;
  return {{forward_axis(g, 0), forward_axis(g, 1), forward_axis(g, 2)},
          {g.kernel[0], g.kernel[1], g.kernel[2]},
          p.batch(),
          Operand(p.image),
          Operand(p.grad_output),
          p.grad_weight,
          blocks_of(p.image)};
}

// The planes of a problem: at the pixels, at the positions, and the weight if it is read.
struct Views {
  const Planes<3>&image, &output;
  const Planes<3>* weight;
  const Geometry<3>& geometry;
};
inline Views views_of(const Correlation<3>& p) { return {p.image, p.output, &p.weight, p.geometry}; }
inline Views views_of(const InputGrad<3>& p) { return {p.grad_input, p.grad_output, &p.weight, p.geometry}; }
inline Views views_of(const WeightGrad<3>& p) { return {p.image, p.grad_output, nullptr, p.geometry}; }

inline bool is_phase(const Correlation<3>& problem) { return problem.phase; }
template <class Problem>
bool is_phase(const Problem&) {
  return false;
}

// Why neither engine takes a problem, in groups of one channel or of several.
const char* decline_views(const Views& views, bool several);

template <class Problem>
const char* decline_problem(const Problem& problem, bool several) {
  if (is_phase(problem)) return "the phases of an input gradient are taken together or not at all";
  return decline_views(views_of(problem), several);
}

// A job whose tasks are several parts each where these are small: Own has run_part(part, buffers), and calls
// plan_parts() when it is cut up.
template <class Own>
class PartsJob : public TaskJob<Own> {
 public:
  template <class Buffers>
  void run_task(const Call&, int64_t task, const Buffers& own) const {
    for (int64_t part = task * size_, end = std::min(parts_, part + size_); part < end; ++part)
      static_cast<const Own&>(*this).run_part(part, own);
  }

 protected:
  // `products`: of a part.
  void plan_parts(int64_t parts, double products, const char* why) {
    parts_ = parts;
    size_ = std::max<int64_t>(1, static_cast<int64_t>(kSerialProducts / 8 / std::max(1., products)));
    Plan& plan = this->plan_;
    plan.why = why;
    plan.tasks = ceil_div(parts_, size_);
    plan.serial = parts * products < kSerialProducts;
    this->measure();
  }

 private:
  int64_t parts_ = 0, size_ = 1;
};

}  // namespace unfoldconv::cpu::depthwise
