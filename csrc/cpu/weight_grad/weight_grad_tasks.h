// What the engines of the weight gradient share: a task, and where its sums go.
//
// A task owns a block of grad_weight, or its sum over some of the units that an engine cuts the positions of all images
// into. Where several tasks sum one block, their sums are added in order at the end.
#pragma once

#include "cpu/shared/positions.h"
#include "cpu/shared/terms.h"
#include "cpu/weight_grad/weight_grad_engines.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {

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
template <class Sum, int Rank>
Splits split_sums(const WeightGrad<Rank>& problem, int64_t blocks, int64_t units, int64_t least) {
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

template <class Terms, int Rank>
class WeightTask {
 public:
  using Sum = typename Terms::Sum;
  using From = typename Terms::From;

  const Tap<Rank>* taps;
  int64_t group;
  Range units;

  WeightTask(const Terms& terms, const WeightGrad<Rank>& problem, const Tap<Rank>* tap_list, const Splits& splits,
             Sum* partial, int64_t blocks, int64_t number)
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

// Adds partial[split, numel] up in order, in place, and writes the dtype of the result.
template <class Terms>
void add_partials(const Terms& terms, typename Terms::Sum* partial, int64_t splits, int64_t numel,
                  typename Terms::From* result) {
  using Sum = typename Terms::Sum;
  parallel_over(numel, splits * sizeof(Sum), [&](int64_t begin, int64_t end) {
    for (int64_t split = 1; split < splits; ++split)
      for (int64_t i = begin; i < end; ++i) partial[i] += partial[split * numel + i];
    terms.pack.store(partial + begin, result + begin, 1, end - begin);
  });
}

// body(task, buffers) for every task, of which there are `blocks` for each group and split; or their report. Returns
// false, with nothing done, where the buffers that carve(Carver&) takes are beyond the limit.
template <class Terms, int Rank, class Carve, class Body>
bool run_weight_tasks(const Terms& terms, const WeightGrad<Rank>& problem, const Splits& splits, int64_t blocks,
                      int64_t panel_lanes, const char* why, const Carve& carve, const Body& body) {
  using Sum = typename Terms::Sum;
  Carver count;
  carve(count);
  if (count.bytes() > workspace_limit().cpu) return false;

  const int64_t numel = problem.numel(), tasks = splits.count * problem.groups() * blocks;
  const auto carve_shared = [&](Carver& carver) {
    return std::make_pair(carver.take<Tap<Rank>>(problem.geometry.tap_numel()),
                          carver.take<Sum>(splits.count > 1 ? splits.count * numel : 0));
  };
  Carver shared_count;
  carve_shared(shared_count);
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine(terms.tile_name(panel_lanes), tasks, count.bytes(), shared_count.bytes(), why);
    return true;
  }
  const Scratch shared(shared_count.bytes(), *problem.like);
  Carver shared_carver(shared.data_ptr());
  const auto memory = carve_shared(shared_carver);
  list_taps<Rank>(problem.geometry, problem.image.layout.axis_stride, memory.first);

  const bool serial = 2. * numel * problem.batch() * problem.geometry.position_numel() < kSerialFlops;
  run_tasks(tasks, serial, *problem.like, carve, [&](int64_t number, const auto& buffers) {
    const TileScope<typename Terms::T> scope(terms.tiles);
    body(WeightTask<Terms, Rank>(terms, problem, memory.first, splits, memory.second, blocks, number), buffers);
  });
  if (splits.count > 1)
    add_partials(terms, memory.second, splits.count, numel,
                 reinterpret_cast<typename Terms::From*>(problem.grad_weight));
  return true;
}

}  // namespace unfoldconv::cpu
