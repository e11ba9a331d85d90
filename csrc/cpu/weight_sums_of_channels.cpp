// The weight gradient with channels in the lanes (weight_sums.h).
//
// A task owns a block of grad_weight, or its sum over some of the images. It walks stretches of positions: lays their
// grad_output out as [row, position], and for each panel of channels and each tap multiplies it by the image, whose
// rows of channels are read where they lie, border positions left out.
#include "../workspace.h"
#include "correlation_types.h"
#include "positions.h"
#include "weight_partials.h"
#include "weight_sums.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kChunkSegments = 4;   // of positions that are multiplied at a time
constexpr int64_t kSegmentLanes = 64;   // positions in one
constexpr int64_t kLeastTapPanels = 8;  // taps and panels of a task: what a row of grad_output is laid out for
constexpr int64_t kLeastRows = 48;      // of a task

// How a problem is cut up.
struct Plan {
  int64_t segments;
  int64_t taps, block_taps, tap_blocks;
  int64_t panel_channels, panels, block_panels, panel_blocks;
  int64_t rows, block_rows, row_blocks;
  int64_t split, splits;  // segments that a task sums
  int64_t tap_pieces;
};

template <class Terms, int Rank>
Plan plan_of(const Terms& terms, const WeightSums<Rank>& problem) {
  using Sum = typename Terms::Sum;
  const int64_t limit = workspace_limit().cpu;
  Plan plan;
  plan.segments = ceil_div(problem.batch() * problem.geometry.position_numel(), kSegmentLanes);
  plan.tap_pieces = most_pieces<Rank>(kSegmentLanes, problem.geometry.positions);
  plan.taps = problem.geometry.tap_numel();
  plan.rows = problem.rows();
  plan.panel_channels = std::min(terms.most_lanes(), terms.width(problem.channels()));
  plan.panels = ceil_div(problem.channels(), plan.panel_channels);

  // Rows, panels and taps of a block, within a quarter of the limit.
  const int64_t room = std::max<int64_t>(1, limit / 4 / (plan.panel_channels * static_cast<int64_t>(sizeof(Sum))));
  const int64_t few_rows = std::min(plan.rows, kLeastRows);
  plan.block_taps = std::clamp<int64_t>(room / few_rows, 1, plan.taps);
  plan.tap_blocks = ceil_div(plan.taps, plan.block_taps);
  plan.block_taps = ceil_div(plan.taps, plan.tap_blocks);
  plan.block_panels = std::clamp<int64_t>(
      std::min(room / few_rows / plan.block_taps, ceil_div(kLeastTapPanels, plan.block_taps)), 1, plan.panels);
  plan.panel_blocks = ceil_div(plan.panels, plan.block_panels);
  plan.block_panels = ceil_div(plan.panels, plan.panel_blocks);
  const int64_t most_rows = std::max<int64_t>(1, room / plan.block_taps / plan.block_panels);
  const int64_t blocks = problem.groups() * plan.panel_blocks * plan.tap_blocks;
  const int64_t wanted = std::min(ceil_div(kTasksPerProblem, blocks), std::max<int64_t>(1, plan.rows / kLeastRows));
  plan.row_blocks = std::max(ceil_div(plan.rows, most_rows), wanted);
  plan.block_rows = std::min(most_rows, round_up(ceil_div(plan.rows, plan.row_blocks), terms.tiles.rows));
  plan.row_blocks = ceil_div(plan.rows, plan.block_rows);

  const int64_t weight_bytes =
      problem.groups() * plan.rows * problem.channels() * plan.taps * static_cast<int64_t>(sizeof(Sum));
  const int64_t most_splits = std::clamp<int64_t>(limit / 2 / std::max<int64_t>(1, weight_bytes), 1,
                                                  ceil_div(plan.segments, 2 * kChunkSegments));
  plan.splits = std::min(most_splits, ceil_div(kTasksPerProblem, blocks * plan.row_blocks));
  plan.split = ceil_div(plan.segments, plan.splits);
  plan.splits = ceil_div(plan.segments, plan.split);
  return plan;
}

template <class Terms, int Rank>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  T* grads;
  Sum *sums, *result;
  PositionPiece<Rank>* positions;
  Run<T>* runs;
  const T** run_rows;  // [runs, rows of a tile]
};

// The positions of a piece that a tap reads inside the image for, and the image element that the first of them reads.
template <int Rank>
struct TapReach {
  int64_t begin, end, offset;

  TapReach(const PositionPiece<Rank>& piece, const Tap<Rank>& tap, const Geometry<Rank>& geometry,
           const PlaneLayout<Rank>& image) {
    constexpr int last = Rank - 1;
    bool inside = true;
    offset = piece.image * image.stride[0] + tap.offset;
    for (int axis = 0; axis < Rank; ++axis) {
      const int64_t corner = piece.index[axis] * geometry.stride[axis];
      if (axis < last)
        inside &= static_cast<uint64_t>(corner + tap.shift[axis]) < static_cast<uint64_t>(geometry.image[axis]);
      offset += corner * image.axis_stride[axis];
    }
    const int64_t stride = geometry.stride[last], start = piece.index[last] * stride + tap.shift[last];
    begin = std::clamp<int64_t>(ceil_div(-start, stride), 0, piece.length);
    end = std::clamp<int64_t>(ceil_div(geometry.image[last] - start, stride), begin, piece.length);
    if (!inside) end = begin;
    offset += begin * stride * image.axis_stride[last];
  }
};

// grad_output of one segment as [row, position].
template <class Terms, int Rank>
void lay_out_grads(const Terms& terms, const WeightSums<Rank>& problem, const PositionPiece<Rank>* pieces, int count,
                   bool line, int64_t group, int64_t row, int64_t rows, int64_t pitch, typename Terms::T* to) {
  using T = typename Terms::T;
  const PlaneLayout<Rank>& layout = problem.grad_output.layout;
  const int64_t step = layout.axis_stride[Rank - 1];
  const T* const base =
      reinterpret_cast<const T*>(problem.grad_output.data) + group * layout.stride[1] + row * layout.stride[2];
  for (int piece = 0, next; piece < count; piece = next) {
    int64_t positions = pieces[piece].length;
    for (next = piece + 1; line && next < count && pieces[next].image == pieces[piece].image; ++next)
      positions += pieces[next].length;
    const T* const from = base + offset_of<Rank>(pieces[piece], layout);
    T* const target = to + pieces[piece].lane;
    if (layout.stride[2] == 1)
      terms.pack.transpose({from, step, 1, positions, rows, positions}, target, pitch);
    else
      for (int64_t m = 0; m < rows; ++m)
        terms.pack.line(from + m * layout.stride[2], step, target + m * pitch, positions);
  }
}

template <class Terms, int Rank>
bool run(const Terms& terms, const WeightSums<Rank>& problem) {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  if (problem.image.layout.stride[2] != 1 || problem.channels() % terms.tiles.lanes != 0) return false;
  const Plan plan = plan_of(terms, problem);
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>&image = problem.image.layout, &output = problem.grad_output.layout;
  const int64_t groups = problem.groups(), channels = problem.channels();
  const int64_t positions = problem.batch() * geometry.position_numel();
  constexpr int64_t pitch = kChunkSegments * kSegmentLanes;  // of a row of grad_output
  const int64_t most_runs = kChunkSegments * plan.tap_pieces;
  const auto carve = [&](Carver& carver) {
    return Buffers<Terms, Rank>{
        carver.take<T>(plan.block_rows * pitch),
        carver.take<Sum>(plan.block_taps * plan.block_panels * plan.block_rows * plan.panel_channels),
        carver.take<Sum>(plan.panel_channels * plan.block_taps),
        carver.take<PositionPiece<Rank>>(most_runs),
        carver.take<Run<T>>(most_runs),
        carver.take<const T*>(most_runs * terms.tiles.rows)};
  };
  Carver count;
  carve(count);
  if (count.bytes() > workspace_limit().cpu) return false;

  const int64_t numel = groups * plan.rows * channels * plan.taps;
  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<Tap<Rank>>(plan.taps),
                           carver.take<Sum>(plan.splits > 1 ? plan.splits * numel : 0));
  };
  const int64_t tasks = plan.splits * groups * plan.panel_blocks * plan.tap_blocks * plan.row_blocks;
  Carver shared_count;
  carve_shared(shared_count);
  if (Report* const report = Report::wanted()) {
    report->engine(Engine::channels, terms.tile_name(plan.panel_channels), tasks, count.bytes(), shared_count.bytes(),
                   "channels adjoin in memory: the image is read where it lies");
    return true;
  }
  const Tensor shared = allocate_bytes(shared_count.bytes(), problem.grad_weight);
  Carver shared_carver(shared);
  const auto [tap_list, partial] = carve_shared(shared_carver);
  list_taps<Rank>(geometry, image.axis_stride, tap_list);
  // Positions of an image that follow each other at one distance.
  PlaneLayout<Rank> spacing = output;
  for (int axis = 0; axis < Rank; ++axis)
    spacing.axis_stride[axis] /= std::max<int64_t>(1, output.axis_stride[Rank - 1]);
  const bool line = is_line<Rank>(spacing, geometry.positions);
  T* const grad_weight = static_cast<T*>(problem.grad_weight.data_ptr());
  const int64_t step = geometry.stride[Rank - 1] * image.axis_stride[Rank - 1];

  const bool serial = 2. * numel * positions < kSerialFlops;
  run_tasks(tasks, serial, problem.grad_weight, carve, [&](int64_t task, const auto& buffers) {
    const TileScope<T> scope(terms.tiles);
    const int64_t first_row = task % plan.row_blocks * plan.block_rows;
    const int64_t rows = std::min(plan.block_rows, plan.rows - first_row);
    const int64_t first_tap = task / plan.row_blocks % plan.tap_blocks * plan.block_taps;
    const int64_t end_tap = std::min(plan.taps, first_tap + plan.block_taps);
    const int64_t panel_block = task / plan.row_blocks / plan.tap_blocks;
    const int64_t first_panel = panel_block % plan.panel_blocks * plan.block_panels;
    const int64_t end_panel = std::min(plan.panels, first_panel + plan.block_panels);
    const int64_t group = panel_block / plan.panel_blocks % groups, split = panel_block / plan.panel_blocks / groups;
    const int64_t first_segment = split * plan.split, end_segment = std::min(plan.segments, first_segment + plan.split);
    const T* const plane = reinterpret_cast<const T*>(problem.image.data) + group * image.stride[1];
    const auto sums_of = [&](int64_t tap, int64_t panel) {
      return buffers.sums +
             ((tap - first_tap) * plan.block_panels + panel - first_panel) * plan.block_rows * plan.panel_channels;
    };

    for (int64_t segment = first_segment; segment < end_segment; segment += kChunkSegments) {
      const int64_t segments = std::min(kChunkSegments, end_segment - segment);
      int pieces[kChunkSegments];
      for (int64_t s = 0; s < segments; ++s) {
        const int64_t first = (segment + s) * kSegmentLanes;
        PositionPiece<Rank>* const at = buffers.positions + s * plan.tap_pieces;
        pieces[s] = split_positions<Rank>(first, std::min(kSegmentLanes, positions - first), geometry.positions, at);
        lay_out_grads(terms, problem, at, pieces[s], line, group, first_row, rows, pitch,
                      buffers.grads + s * kSegmentLanes);
      }
      for (int64_t panel = first_panel; panel < end_panel; ++panel) {
        const int64_t channel = panel * plan.panel_channels;
        const int64_t lanes = std::min(plan.panel_channels, channels - channel), width = terms.width(lanes);
        for (int64_t tap = first_tap; tap < end_tap; ++tap) {
          TileArguments<T> arguments{buffers.runs,    0,     0,
                                     plane + channel, 1,     step,
                                     nullptr,         width, segment == first_segment ? Start::zero : Start::sum,
                                     nullptr};
          int64_t block = 0;  // terms in the block so far
          for (int64_t s = 0; s < segments; ++s)
            for (int piece = 0; piece < pieces[s]; ++piece) {
              const PositionPiece<Rank>& at = buffers.positions[s * plan.tap_pieces + piece];
              const TapReach<Rank> reach(at, tap_list[tap], geometry, image);
              const int64_t first = s * kSegmentLanes + at.lane + reach.begin, length = reach.end - reach.begin;
              if (length == 0) continue;
              const T** const run_rows = buffers.run_rows + arguments.run_count * terms.tiles.rows;
              for (int64_t i = 0; i < terms.tiles.rows; ++i) run_rows[i] = buffers.grads + i * pitch + first;
              block += length;
              buffers.runs[arguments.run_count++] = {run_rows, reach.offset, length, block >= kBlockTerms<T>};
              if (block >= kBlockTerms<T>) block = 0;
            }
          Sum* const sums = sums_of(tap, panel);
          for (int64_t row = 0; row < rows; row += terms.tiles.rows) {
            arguments.a_offset = row * pitch;
            arguments.c = sums + row * width;
            terms.multiply(width, std::min<int64_t>(terms.tiles.rows, rows - row), arguments);
          }
        }
      }
    }
    for (int64_t panel = first_panel; panel < end_panel; ++panel) {
      const int64_t channel = panel * plan.panel_channels;
      const int64_t lanes = std::min(plan.panel_channels, channels - channel), width = terms.width(lanes);
      const int64_t taps = end_tap - first_tap;
      for (int64_t row = 0; row < rows; ++row) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const Sum* const sums = sums_of(first_tap + tap, panel) + row * width;
          for (int64_t c = 0; c < lanes; ++c) buffers.result[c * taps + tap] = sums[c];
        }
        const int64_t offset = ((group * plan.rows + first_row + row) * channels + channel) * plan.taps + first_tap;
        // Taps of one channel adjoin, and where they are all here the channels do as well.
        const int64_t runs = taps == plan.taps ? 1 : lanes, length = lanes * taps / runs;
        for (int64_t i = 0; i < runs; ++i) {
          const Sum* const from = buffers.result + i * length;
          if (plan.splits > 1)
            std::copy_n(from, length, partial + split * numel + offset + i * plan.taps);
          else
            terms.pack.store(from, grad_weight + offset + i * plan.taps, 1, length);
        }
      }
    }
  });
  if (plan.splits > 1) add_partials(terms, partial, plan.splits, numel, grad_weight);
  return true;
}

}  // namespace

bool weight_sums_of_channels(const WeightSums<3>& problem) {
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) {
    using Terms = std::remove_cvref_t<decltype(terms)>;
    if constexpr (std::is_same_v<typename Terms::T, typename Terms::From>) done = run(terms, problem);
  });
  return done;
}

}  // namespace unfoldconv::cpu
