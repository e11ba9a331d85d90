// The correlation engine with output channels in the lanes (correlate_engines.h).
//
// The weight is packed once, as panels [terms, channels] whose terms are taps first and then channels. A task owns a
// block of positions, counted over all images, of one group, and some panels. The tile kernel reads patches where they
// lie: the channels of one tap are a run. Patches of few channels, and of dtypes that have to be widened, are copied
// into lines first, so that a sum is a single run.
#include "cpu/correlate/correlate_engines.h"
#include "cpu/correlate/patch_lines.h"
#include "cpu/shared/positions.h"
#include "cpu/shared/tap_chunks.h"
#include "cpu/shared/terms.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kBlockPositions = 192;  // of a task
constexpr int64_t kFewChannels = 8;       // fewer make runs that are not worth their set-up

// How a problem is cut up.
struct Plan {
  int64_t terms;     // of a sum
  bool gathered;     // into lines
  bool dots;         // few rows: neighbouring terms are in the lanes instead
  TapChunks chunks;  // of a sum; one that is gathered has the terms of a single tap
  int64_t rows, panel_rows, panels, block_panels, panel_blocks;
  int64_t tile_rows, block_positions, position_blocks;
};

template <class Terms, int Rank>
Plan plan_of(const Terms& terms, const Correlation<Rank>& problem) {
  using T = typename Terms::T;
  const int64_t limit = workspace_limit().cpu, taps = problem.geometry.tap_numel(), channels = problem.channels();
  Plan plan;
  plan.tile_rows = terms.tiles.rows;
  plan.terms = Terms::count(channels * taps);
  plan.gathered = (!std::is_same_v<T, typename Terms::From> && Terms::kHalves == 1) || channels % Terms::kHalves != 0 ||
                  channels < kFewChannels;
  plan.rows = problem.variants() * problem.rows();
  plan.dots = plan.rows <= kDotColumns && terms.tiles.dots[0] != nullptr;
  const int64_t most_terms = plan.dots || plan.gathered ? plan.terms : kChunkTerms;
  const int64_t tap_terms = plan.gathered ? plan.terms : channels / Terms::kHalves;
  const int64_t sums = plan.gathered ? 1 : taps;  // runs of tap_terms
  plan.chunks = {sums, tap_terms, most_terms, terms.tiles.depth};

  plan.panel_rows = plan.dots ? plan.rows : terms.most_lanes();
  plan.panels = ceil_div(plan.rows, plan.panel_rows);

  // What a position takes: its line, or its share of runs.
  const int64_t run_bytes = sizeof(Run<T>) / plan.tile_rows + sizeof(const T*) + 1;
  const int64_t position_bytes =
      plan.gathered ? plan.terms * static_cast<int64_t>(sizeof(T)) : sums * plan.chunks.per_tap * run_bytes;
  const int64_t positions = problem.batch() * problem.geometry.position_numel();
  const int64_t room =
      std::max<int64_t>(1, limit / 2 / std::max<int64_t>(1, position_bytes) / plan.tile_rows) * plan.tile_rows;
  const int64_t most = std::min(room, kBlockPositions);
  plan.position_blocks = ceil_div(positions, most);
  plan.block_positions = round_up(ceil_div(positions, plan.position_blocks), plan.tile_rows);
  plan.position_blocks = ceil_div(positions, plan.block_positions);
  plan.panel_blocks =
      std::clamp<int64_t>(ceil_div(kTasksPerProblem, plan.position_blocks * problem.groups()), 1, plan.panels);
  plan.block_panels = ceil_div(plan.panels, plan.panel_blocks);
  plan.panel_blocks = ceil_div(plan.panels, plan.block_panels);
  return plan;
}

// The weight as [groups][panels][terms][lanes of the panel].
template <class Terms, int Rank>
void pack_weight(const Terms& terms, const Correlation<Rank>& problem, const Plan& plan, typename Terms::T* packed) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  const auto& layout = problem.weight.layout;
  const auto& kernel = problem.geometry.kernel;
  const int64_t taps = problem.geometry.tap_numel(), channels = problem.channels(), rows = problem.rows();
  const int64_t group_terms = plan.terms * terms.width(plan.rows);
  // Elements [0, channels * taps) of a row in a line, taps the faster: the panel is a transpose of all of them.
  const bool lines = Terms::kHalves == 1 && is_line<Rank>(layout, kernel) && layout.stride[2] == taps;
  parallel_over(
      problem.groups() * plan.panels, plan.terms * plan.panel_rows * sizeof(T), [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t group = item / plan.panels, first = item % plan.panels * plan.panel_rows;
          const int64_t last = std::min(plan.rows, first + plan.panel_rows), width = terms.width(last - first);
          T* const panel = packed + group * group_terms + plan.terms * first;
          for (int64_t row = first; row < last;) {
            const int64_t variant = row / rows, end_row = std::min(last, (variant + 1) * rows);
            const From* const from =
                reinterpret_cast<const From*>(problem.weight_of(variant).at(group, row % rows).data);
            TransposeArguments<From> part{from, layout.stride[1], layout.stride[2], end_row - row, 0, 0};
            part.width = end_row == last ? width - (row - first) : part.lanes;
            T* const to = panel + (row - first);
            if (lines) {
              part.term_stride = 1;
              part.terms = channels * taps;
              part.period = taps;
              terms.pack.transpose(part, to, width);
            } else if (channels % Terms::kHalves == 0) {
              int64_t tap[Rank] = {};
              for (int64_t flat = 0; flat < taps; ++flat) {
                part.from = from;
                for (int axis = 0; axis < Rank; ++axis) part.from += tap[axis] * layout.axis_stride[axis];
                part.terms = channels;
                terms.pack.transpose(part, to + flat * (channels / Terms::kHalves) * width, width);
                for (int axis = Rank - 1; axis >= 0 && ++tap[axis] == kernel[axis]; --axis) tap[axis] = 0;
              }
            } else if constexpr (Terms::kHalves == 2) {  // pairs reach from one tap into the next
              for (int64_t element = 0; element < 2 * plan.terms; ++element) {
                int64_t tap[Rank];
                unravel<Rank>(element / channels % taps, kernel, tap);
                int64_t offset = element % channels * layout.stride[2];
                for (int axis = 0; axis < Rank; ++axis) offset += tap[axis] * layout.axis_stride[axis];
                uint16_t* const target = reinterpret_cast<uint16_t*>(to + element / 2 * width) + element % 2;
                for (int64_t lane = 0; lane < part.width; ++lane)
                  target[2 * lane] = lane < part.lanes && element < channels * taps
                                         ? reinterpret_cast<const uint16_t*>(from)[offset + lane * part.lane_stride]
                                         : uint16_t{0};
              }
            }
            row = end_row;
          }
        }
      });
}

// The weight as lines [groups][rows][terms], for dots.
template <class Terms, int Rank>
void pack_weight_lines(const Terms& terms, const Correlation<Rank>& problem, const Plan& plan,
                       typename Terms::T* packed) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Element = std::conditional_t<Terms::kHalves == 2, uint16_t, T>;
  const auto& layout = problem.weight.layout;
  const auto& kernel = problem.geometry.kernel;
  const int64_t taps = problem.geometry.tap_numel(), channels = problem.channels(), rows = problem.rows();
  for (int64_t item = 0; item < problem.groups() * plan.rows; ++item) {
    const int64_t group = item / plan.rows, row = item % plan.rows;
    const From* const from = reinterpret_cast<const From*>(problem.weight_of(row / rows).at(group, row % rows).data);
    Element* to = reinterpret_cast<Element*>(packed + item * plan.terms);
    int64_t tap[Rank] = {};
    for (int64_t flat = 0; flat < taps; ++flat, to += channels) {  // the last Pair of an odd number is filled up
      int64_t offset = 0;
      for (int axis = 0; axis < Rank; ++axis) offset += tap[axis] * layout.axis_stride[axis];
      terms.pack.line(from + offset, layout.stride[2], reinterpret_cast<T*>(to), channels);
      for (int axis = Rank - 1; axis >= 0 && ++tap[axis] == kernel[axis]; --axis) tap[axis] = 0;
    }
  }
}

template <class Terms, int Rank>
struct Buffers {
  using T = typename Terms::T;
  T *lines, *zeros;
  typename Terms::Sum* sums;
  Position<Rank>*positions, *located;
  int64_t* missed;  // taps of each, see group_by_taps
  Run<T>* runs;
  const T** run_rows;  // [runs, rows of a tile]
  int32_t* run_ends;   // [tiles, chunks]
};

// Runs of one tile for every chunk; returns where the next tile's begin.
template <class Terms, int Rank>
Run<typename Terms::T>* list_runs(const Correlation<Rank>& problem, const Plan& plan, const typename Terms::From* image,
                                  const Tap<Rank>* taps, const Position<Rank>* positions, int64_t rows,
                                  const Buffers<Terms, Rank>& buffers, int32_t* run_ends,
                                  Run<typename Terms::T>* runs) {
  using T = typename Terms::T;
  const int64_t tap_count = problem.geometry.tap_numel(), tap_terms = problem.channels() / Terms::kHalves;
  const int64_t block_taps = taps_of_block<T>(tap_terms);
  const TapChunks& chunks = plan.chunks;
  for (int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    Run<T>* const first_run = runs;
    int64_t block = -1;  // of the last run
    const int64_t first_tap = chunks.first_tap(chunk);
    const int64_t end_tap = std::min(tap_count, first_tap + chunks.taps);
    const int64_t first_channel = chunks.first_channel(chunk);
    for (int64_t tap = first_tap; tap < end_tap; ++tap) {
      bool any = false;
      const T** const run_rows = buffers.run_rows + (runs - buffers.runs) * plan.tile_rows;
      for (int64_t i = 0; i < rows; ++i) {
        const bool inside = positions[i].interior || reads_inside(positions[i], taps[tap], problem.geometry);
        any |= inside;
        run_rows[i] =
            inside ? reinterpret_cast<const T*>(image + positions[i].image_offset + taps[tap].offset) + first_channel
                   : buffers.zeros;
      }
      if (!any) continue;
      if (runs != first_run && tap / block_taps != block) runs[-1].ends_block = true;
      block = tap / block_taps;
      *runs++ = {run_rows, tap * tap_terms + first_channel, std::min(chunks.channels, tap_terms - first_channel),
                 false};
    }
    run_ends[chunk] = static_cast<int32_t>(runs - buffers.runs);
  }
  return runs;
}

template <class Terms, int Rank>
bool run(const Terms& terms, const Correlation<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  const Plan plan = plan_of(terms, problem);
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>& output = problem.output.layout;
  const int64_t groups = problem.groups(), variants = problem.variants(), rows = problem.rows();
  const int64_t taps = geometry.tap_numel(), positions = problem.batch() * geometry.position_numel();
  const int64_t padded_rows = plan.dots ? plan.rows : terms.width(plan.rows);
  const int64_t tiles = plan.block_positions / plan.tile_rows;
  const int64_t runs = plan.gathered ? 1 : taps * plan.chunks.per_tap;
  const bool dense_rows =
      geometry.dilation[Rank - 1] == 1 && problem.image.layout.axis_stride[Rank - 1] == problem.channels();
  PatchRows<Rank> patch_rows{dense_rows ? std::max<int64_t>(1, geometry.kernel[Rank - 1]) : 1, 0, nullptr};
  patch_rows.count = taps / patch_rows.taps;

  const auto carve = [&](Carver& carver) {
    return Buffers<Terms, Rank>{
        carver.take<T>(plan.gathered ? plan.block_positions * plan.terms + kLinesSlack / sizeof(T) : 0),
        carver.take<T>(plan.gathered ? 0 : plan.chunks.channels),
        carver.take<Sum>(plan.block_positions * plan.panel_rows),
        carver.take<Position<Rank>>(plan.block_positions),
        carver.take<Position<Rank>>(plan.gathered ? 0 : plan.block_positions),
        carver.take<int64_t>(plan.gathered ? 0 : plan.block_positions),
        carver.take<Run<T>>(tiles * runs + 1),
        carver.take<const T*>((tiles * runs + 1) * plan.tile_rows),
        carver.take<int32_t>(tiles * plan.chunks.count)};
  };
  Carver count;
  carve(count);
  if (count.bytes() > workspace_limit().cpu) return false;

  // What all tasks read: the packed weight, the bias and the taps.
  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<T>(groups * plan.terms * padded_rows + 1),  // pack.line fills up the last Pair
                           carver.take<Sum>(problem.bias ? groups * padded_rows : 0), carver.take<Tap<Rank>>(taps),
                           carver.take<int64_t>(patch_rows.count));
  };
  Carver shared_count;
  carve_shared(shared_count);
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine(
        terms.tile_name(std::min(plan.panel_rows, padded_rows)), plan.position_blocks * groups * plan.panel_blocks,
        count.bytes(), shared_count.bytes(),
        plan.gathered
            ? "channels adjoin in memory; patches are copied into lines, being of few channels or another type"
            : "channels adjoin in memory: patches are read where they lie");
    return true;
  }
  const Scratch shared(shared_count.bytes(), *problem.like);
  Carver shared_carver(shared.data_ptr());
  const auto [packed, bias, tap_list, row_offsets] = carve_shared(shared_carver);
  if (plan.dots)
    pack_weight_lines(terms, problem, plan, packed);
  else
    pack_weight(terms, problem, plan, packed);
  if (problem.bias) widen_bias<Terms>(problem.bias, groups, variants, rows, padded_rows, bias);
  list_taps<Rank>(geometry, problem.image.layout.axis_stride, tap_list);
  for (int64_t row = 0; row < patch_rows.count; ++row) row_offsets[row] = tap_list[row * patch_rows.taps].offset;
  patch_rows.offset = row_offsets;
  const bool lines = std::is_same_v<Sum, From> && variants == 1 && output.stride[2] == 1;

  const bool serial = 2. * positions * groups * plan.rows * problem.channels() * taps < kSerialFlops;
  run_tasks(plan.position_blocks * groups * plan.panel_blocks, serial, *problem.like, carve,
            [&](int64_t task, const auto& buffers) {
              const TileScope<T> scope(terms.tiles);
              const int64_t first_panel = task % plan.panel_blocks * plan.block_panels;
              const int64_t end_panel = std::min(plan.panels, first_panel + plan.block_panels);
              const int64_t group = task / plan.panel_blocks % groups;
              const int64_t first = task / plan.panel_blocks / groups * plan.block_positions;
              const int64_t block = std::min(plan.block_positions, positions - first);
              const From* const image =
                  reinterpret_cast<const From*>(problem.image.data) + group * problem.image.layout.stride[1];
              locate_positions(first, block, problem, plan.gathered ? buffers.positions : buffers.located);
              if (plan.gathered) {
                gather_lines(terms, problem, image, tap_list, patch_rows, buffers.positions, block, plan.terms,
                             buffers.lines);
              } else {
                group_by_taps(geometry, buffers.located, block, buffers.missed, buffers.positions);
                std::fill_n(buffers.zeros, plan.chunks.channels, T{});
              }
              auto* next = buffers.runs;
              for (int64_t position = 0, tile = 0; position < block; position += plan.tile_rows, ++tile) {
                const int64_t tile_rows = std::min(plan.tile_rows, block - position);
                if (plan.gathered) {
                  const auto** const run_rows = buffers.run_rows + (next - buffers.runs) * plan.tile_rows;
                  for (int64_t i = 0; i < tile_rows; ++i) run_rows[i] = buffers.lines + (position + i) * plan.terms;
                  *next++ = {run_rows, 0, plan.terms, true};
                  buffers.run_ends[tile] = static_cast<int32_t>(next - buffers.runs);
                } else {
                  next = list_runs<Terms, Rank>(problem, plan, image, tap_list, buffers.positions + position, tile_rows,
                                                buffers, buffers.run_ends + tile * plan.chunks.count, next);
                }
              }

              for (int64_t panel = first_panel; panel < end_panel; ++panel) {
                const int64_t row = panel * plan.panel_rows, lanes = std::min(plan.panel_rows, plan.rows - row);
                const int64_t width = plan.dots ? lanes : terms.width(lanes);
                const T* const weight = packed + group * plan.terms * padded_rows + plan.terms * row;
                for (int64_t chunk = 0; chunk < plan.chunks.count; ++chunk) {
                  for (int64_t position = 0, tile = 0; position < block; position += plan.tile_rows, ++tile) {
                    const int64_t tile_rows = std::min(plan.tile_rows, block - position);
                    const Position<Rank>* const at = buffers.positions + position;
                    const int64_t end = tile * plan.chunks.count + chunk;
                    const int32_t begin = end ? buffers.run_ends[end - 1] : 0;
                    TileArguments<T> arguments{buffers.runs + begin,
                                               buffers.run_ends[end] - begin,
                                               0,
                                               weight,
                                               plan.dots ? 1 : width,
                                               plan.dots ? plan.terms : width,
                                               buffers.sums + position * width,
                                               width,
                                               Start::zero,
                                               nullptr};
                    const int64_t step = tile_rows > 1 ? at[1].output_offset - at[0].output_offset : 0;
                    bool direct = lines && lanes == width;
                    for (int64_t i = 2; i < tile_rows; ++i)
                      direct &= at[i].output_offset - at[i - 1].output_offset == step;
                    if (direct) {
                      arguments.c = reinterpret_cast<Sum*>(problem.output.data) + group * output.stride[1] + row +
                                    at[0].output_offset;
                      arguments.c_step = step;
                    }
                    if (chunk > 0) {
                      arguments.start = Start::sum;
                    } else if (problem.bias) {
                      arguments.start = Start::lane_bias;
                      arguments.bias = bias + group * padded_rows + row;
                    }
                    if (plan.dots)
                      terms.dots(lanes)(arguments, static_cast<int>(tile_rows));
                    else
                      terms.multiply(width, tile_rows, arguments);
                    if (direct || chunk < plan.chunks.count - 1) continue;
                    for (int64_t lane = 0; lane < lanes;) {
                      const int64_t variant = (row + lane) / rows, row_of_group = (row + lane) % rows;
                      const int64_t length = std::min(lanes - lane, rows - row_of_group);
                      From* const target = reinterpret_cast<From*>(problem.output_of(variant).data) +
                                           group * output.stride[1] + row_of_group * output.stride[2];
                      for (int64_t i = 0; i < tile_rows; ++i)
                        terms.pack.store(arguments.c + i * width + lane, target + at[i].output_offset, output.stride[2],
                                         length);
                      lane += length;
                    }
                  }
                }
              }
            });
  return true;
}

}  // namespace

bool correlate_channels(const Correlation<3>& problem) {
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
