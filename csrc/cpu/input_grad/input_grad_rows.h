// Rows of grad_input that are summed from columns of rows of grad_output (input_grad_engines.h).
//
// Along the last axis a row is cut into chunks, of as many pixels as the stride: what the windows of one position after
// the other are apart. Chunk q begins at pixel q * stride - padding.
#pragma once

#include <algorithm>
#include <numeric>

#include "cpu/input_grad/input_grad_engines.h"
#include "cpu/shared/image_lines.h"
#include "cpu/shared/terms.h"

namespace unfoldconv::cpu::input_grad {

struct OverlapAddRows {
  int64_t kernel_rows, block_rows;  // rows of the kernel, and of those at one tap of the first axis
  int64_t reach;                    // chunks that a window goes beyond that where it begins
  int64_t first_chunk, chunks;      // of a row
  int64_t piece, pieces;            // chunks of a piece of a row, and pieces of one
  int64_t positions;                // of grad_output that a piece reads
  int64_t row_count;                // pieces of all images
  int64_t slots;                    // rows of grad_output that a piece reads

  // Those that one task sums.
  struct Row {
    int64_t at[3];  // image, and index along all but the last axis
    int64_t part;
    int64_t first, chunks;  // along the last axis
  };

  OverlapAddRows(const Geometry<3>& geometry, int64_t batch, int64_t most_chunks) {
    const int64_t stride = geometry.stride[2], padding = geometry.padding_low[2];
    kernel_rows = geometry.tap_numel() / geometry.kernel[2];
    block_rows = kernel_rows / geometry.kernel[0];
    reach = (geometry.kernel[2] - 1) * geometry.dilation[2] / stride;
    first_chunk = -ceil_div(-padding, stride);
    chunks = ceil_div(geometry.image[2] + padding, stride) - first_chunk;
    pieces = ceil_div(chunks, most_chunks);
    piece = ceil_div(chunks, pieces);
    positions = piece + reach;
    row_count = batch * pieces;
    slots = 1;
    for (int axis = 0; axis < 2; ++axis) {
      row_count *= geometry.image[axis];
      slots *= ceil_div(geometry.kernel[axis],
                        geometry.stride[axis] / std::gcd(geometry.stride[axis], geometry.dilation[axis]));
    }
  }

  // At least as many as share a row of grad_output, of which neighbouring tasks compute columns each for itself.
  int64_t rows_of_task(const Geometry<3>& geometry) const {
    return std::max(geometry.kernel[1], ceil_div(row_count, kTasksPerProblem));
  }

  // Rows follow each other along the axis before the last, so that they share rows of grad_output.
  Row row(int64_t index, const Geometry<3>& geometry) const {
    Row result;
    result.at[2] = index % geometry.image[1];
    index /= geometry.image[1];
    result.part = index % pieces;
    index /= pieces;
    for (int axis = 0; axis >= 0; --axis) {
      result.at[axis + 1] = index % geometry.image[axis];
      index /= geometry.image[axis];
    }
    result.at[0] = index;
    result.first = first_chunk + result.part * piece;
    result.chunks = std::min(piece, chunks - result.part * piece);
    return result;
  }

  // For each row t of the kernel by which `row` is reached: compute(block, slot, offset) where the columns of that row
  // of grad_output, at `offset`, are not in the cache yet, and use(t, slot). A block is a tap of the first axis.
  template <class Compute, class Use>
  void for_each_source(const Row& row, const Geometry<3>& geometry, const PlaneLayout<3>& output, LineCache& cache,
                       const Compute& compute, const Use& use) const {
    cache.begin();
    for (int pass = 0; pass < 2; ++pass)  // what is there already must not make room for what is not
      for (int64_t t = 0; t < kernel_rows; ++t) {
        int64_t taps[3], from = row.at[0], offset = row.at[0] * output.stride[0];
        unravel<3>(t * geometry.kernel[2], geometry.kernel, taps);
        bool inside = true;
        for (int axis = 0; axis < 2; ++axis) {
          const int64_t reached = row.at[axis + 1] + geometry.padding_low[axis] - taps[axis] * geometry.dilation[axis];
          const int64_t position = reached / geometry.stride[axis];
          inside &= reached >= 0 && reached % geometry.stride[axis] == 0 && position < geometry.positions[axis];
          from = from * geometry.positions[axis] + position;
          offset += position * output.axis_stride[axis];
        }
        if (!inside) continue;
        const int64_t block = t / block_rows, key = (from * geometry.kernel[0] + block) * pieces + row.part;
        int64_t slot = cache.find(key);
        if (pass == 0) continue;
        if (slot < 0) {
          slot = cache.take(key);
          compute(block, slot, offset);
        }
        use(t, slot);
      }
  }

  // Where a pixel of a row lies at channel 0, in elements of grad_input.
  static int64_t offset_of(const Row& row, int64_t pixel, const PlaneLayout<3>& input) {
    int64_t offset = row.at[0] * input.stride[0] + pixel * input.axis_stride[2];
    for (int axis = 0; axis < 2; ++axis) offset += row.at[axis + 1] * input.axis_stride[axis];
    return offset;
  }

  // Calls f(first, count, offset) with those of the row's pixels at `phase` of a chunk, one per chunk, that are in the
  // image: `first` counts chunks from the beginning of the row; `offset` is that of the first of them.
  template <class F>
  void for_pixels(const Row& row, const Geometry<3>& geometry, const PlaneLayout<3>& input, int64_t phase,
                  const F& f) const {
    const int64_t stride = geometry.stride[2];
    const int64_t pixel = row.first * stride + phase - geometry.padding_low[2];
    const int64_t begin = std::clamp<int64_t>(ceil_div(-pixel, stride), 0, row.chunks);
    const int64_t end = std::clamp<int64_t>(ceil_div(geometry.image[2] - pixel, stride), begin, row.chunks);
    if (begin < end) f(begin, end - begin, offset_of(row, pixel + begin * stride, input));
  }
};

inline const Fold<float>& overlap_add_of(const Tiles<float>&) { return kernels().tiles.f32_fold; }
inline const Fold<float>& overlap_add_of(const Tiles<Pair>&) { return kernels().tiles.f32_fold; }
inline const Fold<double>& overlap_add_of(const Tiles<double>&) { return kernels().tiles.f64_fold; }

// Where a weight of an input gradient lies: that of input channel c at a tap.
inline int64_t weight_offset(const InputGrad<3>& problem, int64_t tap, int64_t c) {
  const auto& layout = problem.weight.layout;
  int64_t index[3], offset = c * layout.stride[1];
  unravel<3>(tap, problem.geometry.kernel, index);
  for (int axis = 0; axis < 3; ++axis) offset += index[axis] * layout.axis_stride[axis];
  return offset;
}

// A job whose tasks sum some rows of grad_input: Own is as runtime/job.h says, Tiling begins with OverlapAddRows.
template <class Own, class Terms_, class Tiling>
class RowsJob : public TaskJob<Own> {
 public:
  using Terms = Terms_;
  using T = typename Terms::T;
  using From = typename Terms::From;

 protected:
  RowsJob(const Terms& terms, const InputGrad<3>& problem)
      : terms_(terms), problem_(problem), tiling_(terms, problem), split_(tiling_.rows_of_task(problem.geometry)) {}

  void plan_tasks(int64_t tile_lanes, const char* why) {
    const Geometry<3>& geometry = problem_.geometry;
    Plan& plan = this->plan_;
    plan.why = why;
    plan.tile_rows = terms_.tiles.rows;
    plan.tile_lanes = tile_lanes;
    plan.tasks = ceil_div(tiling_.row_count, split_);
    plan.serial = 2. * problem_.grad_output.layout.count[0] * geometry.position_numel() * tiling_.channels *
                      tiling_.rows * geometry.tap_numel() <
                  kSerialFlops;
    this->measure();
  }

  // Calls f(row) with the rows of a task, one after the other.
  template <class F>
  void for_rows(int64_t task, const F& f) const {
    for (int64_t index = task * split_, end = std::min(tiling_.row_count, index + split_); index < end; ++index)
      f(tiling_.row(index, problem_.geometry));
  }

  const Terms terms_;
  const InputGrad<3>& problem_;
  const Tiling tiling_;

 private:
  const int64_t split_;  // rows of a task
};

// What both engines decline.
inline const char* decline_overlap_add(const InputGrad<3>& problem) {
  if (!has_terms(problem.grad_input.dtype)) return kNoTerms;
  if (problem.grad_input.layout.count[1] > 1) return "groups are computed phase by phase";
  if (problem.grad_output.layout.count[2] < 2) return "sums over a single output channel are not worth columns";
  if (problem.grad_input.layout.count[2] > kDotColumns)
    return "more than 4 input channels fill the tiles of each phase";
  if (problem.geometry.kernel[2] <= problem.geometry.stride[2])
    return "windows do not overlap along the last axis, so there is nothing to add up";
  return nullptr;
}
static_assert(kDotColumns == 4);

}  // namespace unfoldconv::cpu::input_grad
