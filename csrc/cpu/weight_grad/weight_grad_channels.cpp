// The weight gradient with channels in the lanes (weight_grad_engines.h).
//
// A task (weight_grad_tasks.h) walks stretches of positions: lays their grad_output out as [row, position], and for
// each panel of channels and each tap multiplies it by the image, whose rows of channels are read where they lie,
// border positions left out.
#include "cpu/weight_grad/weight_grad_tasks.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kChunkSegments = 4;   // of positions that are multiplied at a time
constexpr int64_t kSegmentLanes = 64;   // positions in one
constexpr int64_t kLeastTapPanels = 8;  // taps and panels of a task: what a row of grad_output is laid out for
constexpr int64_t kOwnTapPanels = 12;   // of a task that exists only to be one more
constexpr int64_t kLeastRows = 48;      // of a task

// How a problem is cut up.
struct Plan {
  int64_t panel_channels;
  Blocks rows, taps, panels;
  Splits splits;  // of segments
  int64_t block;  // terms of a block, at least
  int64_t tap_pieces;

  int64_t blocks() const { return rows.count() * taps.count() * panels.count(); }
};

template <class Terms, int Rank>
Plan plan_of(const Terms& terms, const WeightGrad<Rank>& problem) {
  using Sum = typename Terms::Sum;
  const int64_t limit = workspace_limit().cpu, groups = problem.groups();
  const int64_t rows = problem.rows(), taps = problem.geometry.tap_numel();
  const int64_t segments = ceil_div(problem.batch() * problem.geometry.position_numel(), kSegmentLanes);
  Plan plan;
  plan.tap_pieces = most_pieces<Rank>(kSegmentLanes, problem.geometry.positions);
  plan.panel_channels = std::min(terms.most_lanes(), terms.width(problem.channels()));
  const int64_t panels = ceil_div(problem.channels(), plan.panel_channels);

  // Rows, panels and taps of a block, within a quarter of the limit.
  const int64_t room = std::max<int64_t>(1, limit / 4 / (plan.panel_channels * static_cast<int64_t>(sizeof(Sum))));
  const int64_t few_rows = std::min(rows, kLeastRows);
  plan.taps = cut(taps, ceil_div(taps, std::clamp<int64_t>(room / few_rows, 1, taps)));
  const int64_t most_panels = std::clamp<int64_t>(
      std::min(room / few_rows / plan.taps.size, ceil_div(kLeastTapPanels, plan.taps.size)), 1, panels);
  plan.panels = cut(panels, ceil_div(panels, most_panels));
  const int64_t most_rows = std::max<int64_t>(1, room / plan.taps.size / plan.panels.size);
  const int64_t wanted = std::min(ceil_div(kTasksPerProblem, groups * plan.panels.count() * plan.taps.count()),
                                  std::max<int64_t>(1, rows / kLeastRows));
  plan.rows = cut(rows, std::max(ceil_div(rows, most_rows), wanted), terms.tiles.rows);
  plan.rows.size = std::min(plan.rows.size, most_rows);
  plan.splits = split_sums<Sum>(problem, groups * plan.blocks(), segments, 2 * kChunkSegments);

  // Where these are few tasks yet, fewer taps in each; as for splits, an even number.
  const int64_t others = groups * plan.panels.count() * plan.rows.count() * plan.splits.count;
  int64_t parts = std::min(ceil_div(kTasksPerProblem, others), taps * plan.panels.size / kOwnTapPanels);
  if (parts > 1 && parts * others % 2 != 0) ++parts;
  if (parts > plan.taps.count()) plan.taps = cut(taps, parts);
  plan.block = block_terms<typename Terms::T>(ceil_div(segments * kSegmentLanes, plan.splits.count));
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
void lay_out_grads(const Terms& terms, const WeightGrad<Rank>& problem, const PositionPiece<Rank>* pieces, int count,
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
bool run(const Terms& terms, const WeightGrad<Rank>& problem) {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  if (problem.image.layout.stride[2] != 1 || problem.channels() % terms.tiles.lanes != 0) return false;
  const Plan plan = plan_of(terms, problem);
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>&image = problem.image.layout, &output = problem.grad_output.layout;
  const int64_t channels = problem.channels(), positions = problem.batch() * geometry.position_numel();
  constexpr int64_t pitch = kChunkSegments * kSegmentLanes;  // of a row of grad_output
  const int64_t most_runs = kChunkSegments * plan.tap_pieces;
  const auto carve = [&](Carver& carver) {
    return Buffers<Terms, Rank>{
        carver.take<T>(plan.rows.size * pitch),
        carver.take<Sum>(plan.taps.size * plan.panels.size * plan.rows.size * plan.panel_channels),
        carver.take<Sum>(plan.panel_channels * plan.taps.size),
        carver.take<PositionPiece<Rank>>(most_runs),
        carver.take<Run<T>>(most_runs),
        carver.take<const T*>(most_runs * terms.tiles.rows)};
  };
  // Positions of an image that follow each other at one distance.
  PlaneLayout<Rank> spacing = output;
  for (int axis = 0; axis < Rank; ++axis)
    spacing.axis_stride[axis] /= std::max<int64_t>(1, output.axis_stride[Rank - 1]);
  const bool line = is_line<Rank>(spacing, geometry.positions);
  const int64_t step = geometry.stride[Rank - 1] * image.axis_stride[Rank - 1];

  const auto body = [&](auto task, const auto& buffers) {
    const Range rows = task.next(plan.rows), taps = task.next(plan.taps), panels = task.next(plan.panels);
    const T* const plane = reinterpret_cast<const T*>(problem.image.data) + task.group * image.stride[1];
    const auto sums_of = [&](int64_t tap, int64_t panel) {
      return buffers.sums +
             ((tap - taps.begin) * plan.panels.size + panel - panels.begin) * plan.rows.size * plan.panel_channels;
    };

    for (int64_t segment = task.units.begin; segment < task.units.end; segment += kChunkSegments) {
      const int64_t segments = std::min(kChunkSegments, task.units.end - segment);
      int pieces[kChunkSegments];
      for (int64_t s = 0; s < segments; ++s) {
        const int64_t first = (segment + s) * kSegmentLanes;
        PositionPiece<Rank>* const at = buffers.positions + s * plan.tap_pieces;
        pieces[s] = split_positions<Rank>(first, std::min(kSegmentLanes, positions - first), geometry.positions, at);
        lay_out_grads(terms, problem, at, pieces[s], line, task.group, rows.begin, rows.size(), pitch,
                      buffers.grads + s * kSegmentLanes);
      }
      for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const int64_t channel = panel * plan.panel_channels;
        const int64_t lanes = std::min(plan.panel_channels, channels - channel), width = terms.width(lanes);
        for (int64_t tap = taps.begin; tap < taps.end; ++tap) {
          TileArguments<T> arguments{buffers.runs,    0,     0,
                                     plane + channel, 1,     step,
                                     nullptr,         width, segment == task.units.begin ? Start::zero : Start::sum,
                                     nullptr};
          int64_t block = 0;  // terms in the block so far
          for (int64_t s = 0; s < segments; ++s)
            for (int piece = 0; piece < pieces[s]; ++piece) {
              const PositionPiece<Rank>& at = buffers.positions[s * plan.tap_pieces + piece];
              const TapReach<Rank> reach(at, task.taps[tap], geometry, image);
              const int64_t first = s * kSegmentLanes + at.lane + reach.begin, length = reach.end - reach.begin;
              if (length == 0) continue;
              const T** const run_rows = buffers.run_rows + arguments.run_count * terms.tiles.rows;
              for (int64_t i = 0; i < terms.tiles.rows; ++i) run_rows[i] = buffers.grads + i * pitch + first;
              block += length;
              buffers.runs[arguments.run_count++] = {run_rows, reach.offset, length, block >= plan.block};
              if (block >= plan.block) block = 0;
            }
          Sum* const sums = sums_of(tap, panel);
          for (int64_t row = 0; row < rows.size(); row += terms.tiles.rows) {
            arguments.a_offset = row * pitch;
            arguments.c = sums + row * width;
            terms.multiply(width, std::min<int64_t>(terms.tiles.rows, rows.size() - row), arguments);
          }
        }
      }
    }
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const int64_t channel = panel * plan.panel_channels;
      const int64_t lanes = std::min(plan.panel_channels, channels - channel), width = terms.width(lanes);
      for (int64_t row = 0; row < rows.size(); ++row) {
        for (int64_t tap = 0; tap < taps.size(); ++tap) {
          const Sum* const sums = sums_of(taps.begin + tap, panel) + row * width;
          for (int64_t c = 0; c < lanes; ++c) buffers.result[c * taps.size() + tap] = sums[c];
        }
        const int64_t offset = ((rows.begin + row) * channels + channel) * plan.taps.total + taps.begin;
        // Taps of one channel adjoin, and where they are all here the channels do as well.
        const int64_t runs = taps.size() == plan.taps.total ? 1 : lanes, length = lanes * taps.size() / runs;
        for (int64_t i = 0; i < runs; ++i)
          task.write(buffers.result + i * length, offset + i * plan.taps.total, length);
      }
    }
  };
  return run_weight_tasks(terms, problem, plan.splits, plan.blocks(), plan.panel_channels,
                          "channels adjoin in memory: the image is read where it lies", carve, body);
}

}  // namespace

bool weight_sums_of_channels(const WeightGrad<3>& problem) {
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) {
    using Terms = std::remove_cvref_t<decltype(terms)>;
    if constexpr (std::is_same_v<typename Terms::T, typename Terms::From>) done = run(terms, problem);
  });
  return done;
}

}  // namespace unfoldconv::cpu
