// The weight gradient with channels in the lanes (weight_grad_engines.h).
//
// A task (weight_grad_tasks.h) walks stretches of positions: lays their grad_output out as [row, position], and for
// each panel of channels and each tap multiplies it by the image, whose rows of channels are read where they lie,
// border positions left out.
#include "cpu/weight_grad/weight_grad_tasks.h"

namespace unfoldconv::cpu::weight_grad {
namespace {

constexpr int64_t kChunkSegments = 4;   // of positions that are multiplied at a time
constexpr int64_t kSegmentLanes = 64;   // positions in one
constexpr int64_t kLeastTapPanels = 8;  // taps and panels of a task: what a row of grad_output is laid out for
constexpr int64_t kOwnTapPanels = 12;   // of a task that exists only to be one more
constexpr int64_t kLeastRows = 48;      // of a task

// How a problem is cut up.
struct Tiling {
  int64_t panel_channels;
  Blocks rows, taps, panels;
  Splits splits;  // of segments
  int64_t block;  // terms of a block, at least
  int64_t tap_pieces;

  int64_t blocks() const { return rows.count() * taps.count() * panels.count(); }
};

template <class Terms>
Tiling tiling_of(const Terms& terms, const WeightGrad<3>& problem) {
  using Sum = typename Terms::Sum;
  const int64_t limit = workspace_limit().cpu, groups = problem.groups();
  const int64_t rows = problem.rows(), taps = problem.geometry.tap_numel();
  const int64_t segments = ceil_div(problem.batch() * problem.geometry.position_numel(), kSegmentLanes);
  Tiling tiling;
  tiling.tap_pieces = most_pieces<3>(kSegmentLanes, problem.geometry.positions);
  tiling.panel_channels = std::min(terms.most_lanes(), terms.width(problem.channels()));
  const int64_t panels = ceil_div(problem.channels(), tiling.panel_channels);

  // Rows, panels and taps of a block, within a quarter of the limit.
  const int64_t room = std::max<int64_t>(1, limit / 4 / (tiling.panel_channels * static_cast<int64_t>(sizeof(Sum))));
  const int64_t few_rows = std::min(rows, kLeastRows);
  tiling.taps = cut(taps, ceil_div(taps, std::clamp<int64_t>(room / few_rows, 1, taps)));
  const int64_t most_panels = std::clamp<int64_t>(
      std::min(room / few_rows / tiling.taps.size, ceil_div(kLeastTapPanels, tiling.taps.size)), 1, panels);
  tiling.panels = cut(panels, ceil_div(panels, most_panels));
  const int64_t most_rows = std::max<int64_t>(1, room / tiling.taps.size / tiling.panels.size);
  const int64_t wanted = std::min(ceil_div(kTasksPerProblem, groups * tiling.panels.count() * tiling.taps.count()),
                                  std::max<int64_t>(1, rows / kLeastRows));
  tiling.rows = cut(rows, std::max(ceil_div(rows, most_rows), wanted), terms.tiles.rows);
  tiling.rows.size = std::min(tiling.rows.size, most_rows);
  tiling.splits = split_sums<Sum>(problem, groups * tiling.blocks(), segments, 2 * kChunkSegments);

  // Where these are few tasks yet, fewer taps in each; as for splits, an even number.
  const int64_t others = groups * tiling.panels.count() * tiling.rows.count() * tiling.splits.count;
  int64_t parts = std::min(ceil_div(kTasksPerProblem, others), taps * tiling.panels.size / kOwnTapPanels);
  if (parts > 1 && parts * others % 2 != 0) ++parts;
  if (parts > tiling.taps.count()) tiling.taps = cut(taps, parts);
  tiling.block = block_terms<typename Terms::T>(ceil_div(segments * kSegmentLanes, tiling.splits.count));
  return tiling;
}

template <class Terms>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  T* grads;
  Sum *sums, *result;
  PositionPiece<3>* positions;
  Run<T>* runs;
  const T** run_rows;  // [runs, rows of a tile]
};

// The positions of a piece that a tap reads inside the image for, and the image element that the first of them reads.
struct TapReach {
  int64_t begin, end, offset;

  TapReach(const PositionPiece<3>& piece, const Tap<3>& tap, const Geometry<3>& geometry, const PlaneLayout<3>& image) {
    constexpr int last = 2;
    bool inside = true;
    offset = piece.image * image.stride[0] + tap.offset;
    for (int axis = 0; axis < 3; ++axis) {
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
template <class Terms>
void lay_out_grads(const Terms& terms, const WeightGrad<3>& problem, const PositionPiece<3>* pieces, int count,
                   bool line, int64_t group, int64_t row, int64_t rows, int64_t pitch, typename Terms::T* to) {
  using T = typename Terms::T;
  const PlaneLayout<3>& layout = problem.grad_output.layout;
  const int64_t step = position_step<3>(layout, problem.geometry.positions);
  const T* const base =
      reinterpret_cast<const T*>(problem.grad_output.data) + group * layout.stride[1] + row * layout.stride[2];
  for (int piece = 0, next; piece < count; piece = next) {
    int64_t positions = pieces[piece].length;
    for (next = piece + 1; line && next < count && pieces[next].image == pieces[piece].image; ++next)
      positions += pieces[next].length;
    const T* const from = base + offset_of<3>(pieces[piece], layout);
    T* const target = to + pieces[piece].lane;
    if (layout.stride[2] == 1)
      terms.pack.transpose({from, step, 1, positions, rows, positions}, target, pitch);
    else
      for (int64_t m = 0; m < rows; ++m)
        terms.pack.line(from + m * layout.stride[2], step, target + m * pitch, positions);
  }
}

// Whether the positions of an image follow each other at one distance.
bool evenly_spaced(const PlaneLayout<3>& layout, const int64_t (&positions)[3]) {
  PlaneLayout<3> spacing = layout;
  const int64_t step = std::max<int64_t>(1, position_step<3>(layout, positions));
  for (int axis = 0; axis < 3; ++axis) spacing.axis_stride[axis] /= step;
  return is_line<3>(spacing, positions);
}

template <class Terms>
class ChannelsJob final : public BlocksJob<ChannelsJob<Terms>, Terms> {
  using Base = BlocksJob<ChannelsJob<Terms>, Terms>;
  using Base::problem_;
  using Base::terms_;
  using typename Base::Sum;
  using typename Base::T;

 public:
  ChannelsJob(const Terms& terms, const WeightGrad<3>& problem)
      : Base(terms, problem),
        tiling_(tiling_of(terms, problem)),
        line_(evenly_spaced(problem.grad_output.layout, problem.geometry.positions)) {
    this->plan_tasks(tiling_.splits, tiling_.blocks(), tiling_.panel_channels,
                     "channels are contiguous: the image is read where it lies");
  }

  Buffers<Terms> buffers(Carver& carver) const {
    const int64_t most_runs = kChunkSegments * tiling_.tap_pieces;
    return {carver.take<T>(tiling_.rows.size * kPitch),
            carver.take<Sum>(tiling_.taps.size * tiling_.panels.size * panel_sums()),
            carver.take<Sum>(tiling_.panel_channels * tiling_.taps.size),
            carver.take<PositionPiece<3>>(most_runs),
            carver.take<Run<T>>(most_runs),
            carver.take<const T*>(most_runs * terms_.tiles.rows)};
  }

  void run_block(Task<Terms> task, const Buffers<Terms>& own) const {
    Block block;
    block.rows = task.next(tiling_.rows);
    block.taps = task.next(tiling_.taps);
    block.panels = task.next(tiling_.panels);
    for (int64_t segment = task.units.begin; segment < task.units.end; segment += kChunkSegments) {
      Chunk chunk;
      chunk.segments = std::min(kChunkSegments, task.units.end - segment);
      gather(task, block.rows, segment, chunk, own);
      for (int64_t panel = block.panels.begin; panel < block.panels.end; ++panel)
        for (int64_t tap = block.taps.begin; tap < block.taps.end; ++tap)
          multiply(task, block, panel, tap, chunk, segment == task.units.begin ? Start::zero : Start::sum, own);
    }
    for (int64_t panel = block.panels.begin; panel < block.panels.end; ++panel) store(task, block, panel, own);
  }

 private:
  static constexpr int64_t kPitch = kChunkSegments * kSegmentLanes;  // of a row of grad_output

  // What a task sums.
  struct Block {
    Range rows, taps, panels;
  };
  // Segments that are multiplied at a time.
  struct Chunk {
    int64_t segments;
    int pieces[kChunkSegments];  // of each
  };

  int64_t panel_sums() const { return tiling_.rows.size * tiling_.panel_channels; }
  int64_t lanes_of(int64_t panel) const {
    return std::min(tiling_.panel_channels, problem_.channels() - panel * tiling_.panel_channels);
  }
  Sum* sums_of(const Block& block, int64_t tap, int64_t panel, const Buffers<Terms>& own) const {
    return own.sums + ((tap - block.taps.begin) * tiling_.panels.size + panel - block.panels.begin) * panel_sums();
  }

  // grad_output of a chunk as [row, position].
  void gather(const Task<Terms>& task, Range rows, int64_t segment, Chunk& chunk, const Buffers<Terms>& own) const {
    const int64_t positions = problem_.batch() * problem_.geometry.position_numel();
    for (int64_t s = 0; s < chunk.segments; ++s) {
      const int64_t first = (segment + s) * kSegmentLanes;
      PositionPiece<3>* const at = own.positions + s * tiling_.tap_pieces;
      chunk.pieces[s] =
          split_positions<3>(first, std::min(kSegmentLanes, positions - first), problem_.geometry.positions, at);
      lay_out_grads(terms_, problem_, at, chunk.pieces[s], line_, task.group, rows.begin, rows.size(), kPitch,
                    own.grads + s * kSegmentLanes);
    }
  }

  // Adds to the sums of one tap and panel what a chunk contributes.
  void multiply(const Task<Terms>& task, const Block& of_task, int64_t panel, int64_t tap, const Chunk& chunk,
                Start start, const Buffers<Terms>& own) const {
    const Geometry<3>& geometry = problem_.geometry;
    const PlaneLayout<3>& image = problem_.image.layout;
    const int64_t width = terms_.width(lanes_of(panel)), tile_rows = terms_.tiles.rows;
    const T* const plane = reinterpret_cast<const T*>(problem_.image.data) + task.group * image.stride[1];
    TileArguments<T> arguments{own.runs, 0,
                               0,        plane + panel * tiling_.panel_channels,
                               1,        geometry.stride[2] * image.axis_stride[2],
                               nullptr,  width,
                               start,    nullptr};
    int64_t block = 0;  // terms in the block so far
    for (int64_t s = 0; s < chunk.segments; ++s)
      for (int piece = 0; piece < chunk.pieces[s]; ++piece) {
        const PositionPiece<3>& at = own.positions[s * tiling_.tap_pieces + piece];
        const TapReach reach(at, task.taps[tap], geometry, image);
        const int64_t first = s * kSegmentLanes + at.lane + reach.begin, length = reach.end - reach.begin;
        if (length == 0) continue;
        const T** const run_rows = own.run_rows + arguments.run_count * tile_rows;
        for (int64_t i = 0; i < tile_rows; ++i) run_rows[i] = own.grads + i * kPitch + first;
        block += length;
        own.runs[arguments.run_count++] = {run_rows, reach.offset, length, block >= tiling_.block};
        if (block >= tiling_.block) block = 0;
      }
    const int64_t rows = of_task.rows.size();
    Sum* const sums = sums_of(of_task, tap, panel, own);
    for (int64_t row = 0; row < rows; row += tile_rows) {
      arguments.a_offset = row * kPitch;
      arguments.c = sums + row * width;
      terms_.multiply(width, std::min(tile_rows, rows - row), arguments);
    }
  }

  void store(const Task<Terms>& task, const Block& block, int64_t panel, const Buffers<Terms>& own) const {
    const int64_t lanes = lanes_of(panel), width = terms_.width(lanes), taps = block.taps.size();
    for (int64_t row = 0; row < block.rows.size(); ++row) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const Sum* const sums = sums_of(block, block.taps.begin + tap, panel, own) + row * width;
        for (int64_t c = 0; c < lanes; ++c) own.result[c * taps + tap] = sums[c];
      }
      const int64_t channel = (block.rows.begin + row) * problem_.channels() + panel * tiling_.panel_channels;
      const int64_t offset = channel * tiling_.taps.total + block.taps.begin;
      // Taps of one channel are contiguous, and where they are all here the channels are as well.
      const int64_t runs = taps == tiling_.taps.total ? 1 : lanes, length = lanes * taps / runs;
      for (int64_t i = 0; i < runs; ++i) task.write(own.result + i * length, offset + i * tiling_.taps.total, length);
    }
  }

  const Tiling tiling_;
  const bool line_;
};

}  // namespace

const char* decline_channels(const OneImage<WeightGrad<3>>& problem) {
  const ScalarType dtype = problem->image.dtype;
  if (!has_terms(dtype)) return kNoTerms;
  if (is_16bit_float(dtype)) return "elements of 16 bits are not multiplied as they lie";
  if (problem->image.layout.stride[2] != 1) return "channels of the image are not contiguous";
  const Kernels& k = kernels();
  if (problem->channels() % (dtype == ScalarType::Double ? k.tiles.f64.lanes : k.tiles.f32.lanes) != 0)
    return "channels do not fill whole vectors";
  return nullptr;
}

const char* plan_channels(const WeightGrad<3>& problem, const Call&, JobSlot& slot) {
  with_terms(problem.image.dtype, [&](const auto& terms) {
    using Terms = std::remove_cvref_t<decltype(terms)>;
    if constexpr (std::is_same_v<typename Terms::T, typename Terms::From>)
      slot.emplace<ChannelsJob<Terms>>(terms, problem);
  });
  return nullptr;
}

}  // namespace unfoldconv::cpu::weight_grad
