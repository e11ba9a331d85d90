// What the engines of the weight gradient share: a task, and where its sums go.
//
// A task owns a block of grad_weight, or its sum over some of the units that an engine cuts the positions of all images
// into. Where several tasks sum one block, their sums are added in order at the end.
#pragma once

#include "cpu/shared/positions.h"
#include "cpu/shared/terms.h"
#include "cpu/weight_grad/weight_grad_engines.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu::weight_grad {

struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

// [0, total) cut into blocks of one size, but for the last.
struct Blocks {
  int64_t total, size;

  int64_t count() const { return ceil_div(total, size); }
  Range at(int64_t i) const { return {i * size, std::min(total, (i + 1) * size)}; }
};

// The same with as many blocks, or with fewer where their size is a multiple of a unit.
constexpr Blocks cut(int64_t total, int64_t blocks, int64_t unit = 1) {
  return {total, round_up(ceil_div(total, blocks), unit)};
}

// Units cut into parts that differ by one at most.
struct Splits {
  int64_t units, count;

  Range at(int64_t i) const { return {units * i / count, units * (i + 1) / count}; }
};

// As many parts of the sums as make kTasksPerProblem tasks out of so many blocks, each of `least` units or more, and
// all of them in memory within half the limit.
template <class Sum>
Splits split_sums(const WeightGrad<3>& problem, int64_t blocks, int64_t units, int64_t least) {
  const int64_t bytes = problem.numel() * static_cast<int64_t>(sizeof(Sum));
  const int64_t room = workspace_limit().cpu / 2 / std::max<int64_t>(1, bytes);
  const int64_t most = std::clamp<int64_t>(room, 1, std::max<int64_t>(1, ceil_div(units, least)));
  const int64_t count = std::min(most, ceil_div(kTasksPerProblem, blocks));
  // With an odd number of tasks one of two threads would wait for the other at the end.
  return {units, count > 1 && count * blocks % 2 != 0 ? count - 1 : count};
}

constexpr int64_t kLeastBlockTerms = 16;

// Terms of a block of sums that have so many: rounding errors are least where there are about as many blocks as a block
// has terms (tile_kernels.h).
template <class T>
int64_t block_terms(int64_t terms) {
  if (std::is_same_v<T, Pair>) return kBlockTerms<T>;
  int64_t block = kLeastBlockTerms;
  while (block * block < terms) block *= 2;
  return block;
}

// One task, and its way to the result: grad_weight, or partial sums.
template <class Terms>
class Task {
 public:
  using Sum = typename Terms::Sum;
  using From = typename Terms::From;

  const Tap<3>* taps;
  int64_t group;
  Range units;

  Task(const Terms& terms, const WeightGrad<3>& problem, const Tap<3>* tap_list, const Splits& splits, Sum* partial,
       int64_t blocks, int64_t number)
      : taps(tap_list),
        group(number / blocks % problem.groups()),
        units(splits.at(number / blocks / problem.groups())),
        terms_(terms),
        block_(number % blocks) {
    const int64_t numel = problem.numel(), first = numel / problem.groups() * group;
    partial_ = splits.count > 1 ? partial + number / blocks / problem.groups() * numel + first : nullptr;
    result_ = reinterpret_cast<From*>(problem.grad_weight) + first;
  }

  // The task's block along one of the ways that its engine cuts blocks; each is asked for once, in one order.
  Range next(const Blocks& blocks) {
    const int64_t i = block_ % blocks.count();
    block_ /= blocks.count();
    return blocks.at(i);
  }

  // Writes neighbouring sums of the weight of this group, [rows, channels, taps].
  void write(const Sum* from, int64_t offset, int64_t count) const {
    if (partial_)
      std::copy_n(from, count, partial_ + offset);
    else
      terms_.pack.store(from, result_ + offset, 1, count);
  }

  // The same for sums[tap, channel, lane]; each lane is a row of the weight, `row_length` from the next. `buffer` has
  // room for a vector of lanes.
  void write_lanes(const Sum* sums, int64_t lanes, int64_t tap_count, int64_t channels, Sum* buffer, int64_t offset,
                   int64_t row_length) const {
    const int64_t length = tap_count * channels, width = terms_.width(lanes);
    for (int64_t first = 0; first < lanes; first += terms_.tiles.lanes) {
      const int64_t count = std::min<int64_t>(terms_.tiles.lanes, lanes - first);
      const Sum* from = sums + first;
      for (int64_t tap = 0; tap < tap_count; ++tap)
        for (int64_t c = 0; c < channels; ++c, from += width)
          for (int64_t m = 0; m < count; ++m) buffer[m * length + c * tap_count + tap] = from[m];
      for (int64_t m = 0; m < count; ++m) write(buffer + m * length, offset + (first + m) * row_length, length);
    }
  }

 private:
  const Terms& terms_;
  int64_t block_;
  Sum* partial_;
  From* result_;
};

// A job whose tasks are those above: Own has
//
//   Buffers buffers(Carver&) const;                             // as any job has (runtime/job.h)
//   void run_block(Task<Terms> task, const Buffers&) const;     // writes the sums of a task
//
// and calls plan_tasks() when it has cut its problem up.
template <class Own, class Terms_>
class BlocksJob : public TaskJob<Own> {
 public:
  using Terms = Terms_;
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;

  void share(Carver& carver) {
    taps_ = carver.take<Tap<3>>(problem_.geometry.tap_numel());
    partial_ = carver.take<Sum>(splits_.count > 1 ? splits_.count * problem_.numel() : 0);
  }

  void fill(const Call&) { list_taps<3>(problem_.geometry, problem_.image.layout.axis_stride, taps_); }

  template <class Buffers>
  void run_task(const Call&, int64_t number, const Buffers& own) const {
    const TileScope<T> scope(terms_.tiles);
    static_cast<const Own&>(*this).run_block(Task<Terms>(terms_, problem_, taps_, splits_, partial_, blocks_, number),
                                             own);
  }

  // Adds partial[split, numel] up in order, in place, and writes the dtype of the result.
  void finish(const Call&) final {
    if (splits_.count == 1) return;
    const int64_t numel = problem_.numel(), splits = splits_.count;
    From* const result = reinterpret_cast<From*>(problem_.grad_weight);
    parallel_over(numel, splits * sizeof(Sum), [&](int64_t begin, int64_t end) {
      for (int64_t split = 1; split < splits; ++split)
        for (int64_t i = begin; i < end; ++i) partial_[i] += partial_[split * numel + i];
      terms_.pack.store(partial_ + begin, result + begin, 1, end - begin);
    });
  }

 protected:
  BlocksJob(const Terms& terms, const WeightGrad<3>& problem) : terms_(terms), problem_(problem) {}

  // `blocks` for each group and split.
  void plan_tasks(const Splits& splits, int64_t blocks, int64_t panel_lanes, const char* why) {
    splits_ = splits;
    blocks_ = blocks;
    Plan& plan = this->plan_;
    plan.why = why;
    plan.tile_rows = terms_.tiles.rows;
    plan.tile_lanes = panel_lanes;
    plan.tasks = splits.count * problem_.groups() * blocks;
    plan.serial = 2. * problem_.numel() * problem_.batch() * problem_.geometry.position_numel() < kSerialFlops;
    this->measure();
  }

  const Terms terms_;
  const WeightGrad<3>& problem_;

 private:
  Splits splits_{};
  int64_t blocks_ = 0;
  // What all tasks share: what taps read, and the partial sums.
  Tap<3>* taps_ = nullptr;
  Sum* partial_ = nullptr;
};

}  // namespace unfoldconv::cpu::weight_grad
