// The correlation engine with output channels in the lanes (correlate_engines.h).
//
// The weight is packed once, as panels [terms, channels] whose terms are taps first and then channels. A task owns a
// block of positions, counted over all images, of one group, and some panels. The tile kernel reads patches where they
// lie: the channels of one tap are a run. Patches of few channels, and of dtypes that have to be widened, are copied
// into lines first, so that a sum is a single run.
#include "cpu/correlate/channels_plan.h"
#include "cpu/correlate/correlate_engines.h"
#include "cpu/correlate/patch_lines.h"
#include "cpu/shared/positions.h"
#include "cpu/shared/terms.h"

namespace unfoldconv::cpu {
namespace {

// The weight as [groups][panels][terms][lanes of the panel].
template <class Terms, int Rank>
void pack_weight(const Terms& terms, const Correlation<Rank>& problem, const ChannelsPlan& plan,
                 typename Terms::T* packed) {
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
void pack_weight_lines(const Terms& terms, const Correlation<Rank>& problem, const ChannelsPlan& plan,
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
Run<typename Terms::T>* list_runs(const Correlation<Rank>& problem, const ChannelsPlan& plan,
                                  const typename Terms::From* image, const Tap<Rank>* taps,
                                  const Position<Rank>* positions, int64_t rows, const Buffers<Terms, Rank>& buffers,
                                  int32_t* run_ends, Run<typename Terms::T>* runs) {
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

template <class Terms>
class ChannelsJob final : public TaskJob<ChannelsJob<Terms>> {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  using Own = Buffers<Terms, 3>;

 public:
  ChannelsJob(const Terms& terms, const Correlation<3>& problem)
      : terms_(terms),
        problem_(problem),
        cut_(plan_of(terms, problem)),
        positions_(problem.batch() * problem.geometry.position_numel()),
        padded_rows_(cut_.dots ? cut_.rows : terms.width(cut_.rows)) {
    const Geometry<3>& geometry = problem.geometry;
    const bool dense_rows = geometry.dilation[2] == 1 && problem.image.layout.axis_stride[2] == problem.channels();
    patch_rows_ = {dense_rows ? std::max<int64_t>(1, geometry.kernel[2]) : 1, 0, nullptr};
    patch_rows_.count = geometry.tap_numel() / patch_rows_.taps;

    Plan& plan = this->plan_;
    plan.why = cut_.gathered
                   ? "channels are neighbours in memory; patches are copied into lines, being of few channels "
                     "or another type"
                   : "channels are neighbours in memory: patches are read where they lie";
    plan.tile_rows = terms.tiles.rows;
    plan.tile_lanes = std::min(cut_.panel_rows, padded_rows_);
    plan.tasks = cut_.position_blocks * problem.groups() * cut_.panel_blocks;
    plan.serial = problem.flops() < kSerialFlops;
    this->measure();
  }

  Own buffers(Carver& carver) const {
    const bool gathered = cut_.gathered;
    const int64_t block = cut_.block_positions, tiles = block / cut_.tile_rows;
    const int64_t runs = tiles * (gathered ? 1 : problem_.geometry.tap_numel() * cut_.chunks.per_tap) + 1;
    return {carver.take<T>(gathered ? block * cut_.terms + kLinesSlack / sizeof(T) : 0),
            carver.take<T>(gathered ? 0 : cut_.chunks.channels),
            carver.take<Sum>(block * cut_.panel_rows),
            carver.take<Position<3>>(block),
            carver.take<Position<3>>(gathered ? 0 : block),
            carver.take<int64_t>(gathered ? 0 : block),
            carver.take<Run<T>>(runs),
            carver.take<const T*>(runs * cut_.tile_rows),
            carver.take<int32_t>(tiles * cut_.chunks.count)};
  }

  void share(Carver& carver) {
    const int64_t groups = problem_.groups();
    packed_ = carver.take<T>(groups * cut_.terms * padded_rows_ + 1);  // pack.line fills up the last Pair
    bias_ = carver.take<Sum>(problem_.bias ? groups * padded_rows_ : 0);
    taps_ = carver.take<Tap<3>>(problem_.geometry.tap_numel());
    row_offsets_ = carver.take<int64_t>(patch_rows_.count);
  }

  void fill(const Call&) {
    if (cut_.dots)
      pack_weight_lines(terms_, problem_, cut_, packed_);
    else
      pack_weight(terms_, problem_, cut_, packed_);
    if (problem_.bias)
      widen_bias<Terms>(problem_.bias, problem_.groups(), problem_.variants(), problem_.rows(), padded_rows_, bias_);
    list_taps<3>(problem_.geometry, problem_.image.layout.axis_stride, taps_);
    for (int64_t row = 0; row < patch_rows_.count; ++row) row_offsets_[row] = taps_[row * patch_rows_.taps].offset;
    patch_rows_.offset = row_offsets_;
  }

  void run_task(const Call&, int64_t task, const Own& own) const {
    const TileScope<T> scope(terms_.tiles);
    const int64_t first_panel = task % cut_.panel_blocks * cut_.block_panels;
    const int64_t end_panel = std::min(cut_.panels, first_panel + cut_.block_panels);
    const int64_t group = task / cut_.panel_blocks % problem_.groups();
    const int64_t first = task / cut_.panel_blocks / problem_.groups() * cut_.block_positions;
    const int64_t block = std::min(cut_.block_positions, positions_ - first);
    place_block(group, first, block, own);
    for (int64_t panel = first_panel; panel < end_panel; ++panel)
      for (int64_t chunk = 0; chunk < cut_.chunks.count; ++chunk)
        for (int64_t position = 0, tile = 0; position < block; position += cut_.tile_rows, ++tile)
          multiply(group, panel, chunk, tile, position, std::min(cut_.tile_rows, block - position), own);
  }

 private:
  // Lists the runs of every tile of a block of positions, and gathers their lines if they have to be.
  void place_block(int64_t group, int64_t first, int64_t block, const Own& own) const {
    const From* const image =
        reinterpret_cast<const From*>(problem_.image.data) + group * problem_.image.layout.stride[1];
    locate_positions(first, block, problem_, cut_.gathered ? own.positions : own.located);
    if (cut_.gathered) {
      gather_lines(terms_, problem_, image, taps_, patch_rows_, own.positions, block, cut_.terms, own.lines);
    } else {
      group_by_taps(problem_.geometry, own.located, block, own.missed, own.positions);
      std::fill_n(own.zeros, cut_.chunks.channels, T{});
    }
    auto* next = own.runs;
    for (int64_t position = 0, tile = 0; position < block; position += cut_.tile_rows, ++tile) {
      const int64_t tile_rows = std::min(cut_.tile_rows, block - position);
      if (cut_.gathered) {
        const auto** const run_rows = own.run_rows + (next - own.runs) * cut_.tile_rows;
        for (int64_t i = 0; i < tile_rows; ++i) run_rows[i] = own.lines + (position + i) * cut_.terms;
        *next++ = {run_rows, 0, cut_.terms, true};
        own.run_ends[tile] = static_cast<int32_t>(next - own.runs);
      } else {
        next = list_runs<Terms, 3>(problem_, cut_, image, taps_, own.positions + position, tile_rows, own,
                                   own.run_ends + tile * cut_.chunks.count, next);
      }
    }
  }

  // sums[position, row] (+)= patches[position, term] * panel[term, row] for a tile and a chunk; stores the last one.
  void multiply(int64_t group, int64_t panel, int64_t chunk, int64_t tile, int64_t position, int64_t tile_rows,
                const Own& own) const {
    const PlaneLayout<3>& output = problem_.output.layout;
    const int64_t row = panel * cut_.panel_rows, lanes = std::min(cut_.panel_rows, cut_.rows - row);
    const int64_t width = cut_.dots ? lanes : terms_.width(lanes);
    const T* const weight = packed_ + group * cut_.terms * padded_rows_ + cut_.terms * row;
    const Position<3>* const at = own.positions + position;
    const int64_t end = tile * cut_.chunks.count + chunk;
    const int32_t begin = end ? own.run_ends[end - 1] : 0;
    TileArguments<T> arguments{own.runs + begin,
                               own.run_ends[end] - begin,
                               0,
                               weight,
                               cut_.dots ? 1 : width,
                               cut_.dots ? cut_.terms : width,
                               own.sums + position * width,
                               width,
                               Start::zero,
                               nullptr};
    // Sums that lie in the output as the tile writes them go there at once.
    const int64_t step = tile_rows > 1 ? at[1].output_offset - at[0].output_offset : 0;
    bool direct = std::is_same_v<Sum, From> && problem_.variants() == 1 && output.stride[2] == 1 && lanes == width;
    for (int64_t i = 2; i < tile_rows; ++i) direct &= at[i].output_offset - at[i - 1].output_offset == step;
    if (direct) {
      arguments.c = reinterpret_cast<Sum*>(problem_.output.data) + group * output.stride[1] + row + at[0].output_offset;
      arguments.c_step = step;
    }
    if (chunk > 0) {
      arguments.start = Start::sum;
    } else if (problem_.bias) {
      arguments.start = Start::lane_bias;
      arguments.bias = bias_ + group * padded_rows_ + row;
    }
    if (cut_.dots)
      terms_.dots(lanes)(arguments, static_cast<int>(tile_rows));
    else
      terms_.multiply(width, tile_rows, arguments);
    if (!direct && chunk == cut_.chunks.count - 1) store(group, row, lanes, width, arguments.c, at, tile_rows);
  }

  void store(int64_t group, int64_t row, int64_t lanes, int64_t width, const Sum* sums, const Position<3>* at,
             int64_t tile_rows) const {
    const PlaneLayout<3>& output = problem_.output.layout;
    const int64_t rows = problem_.rows();
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t variant = (row + lane) / rows, row_of_group = (row + lane) % rows;
      const int64_t length = std::min(lanes - lane, rows - row_of_group);
      From* const target = reinterpret_cast<From*>(problem_.output_of(variant).data) + group * output.stride[1] +
                           row_of_group * output.stride[2];
      for (int64_t i = 0; i < tile_rows; ++i)
        terms_.pack.store(sums + i * width + lane, target + at[i].output_offset, output.stride[2], length);
      lane += length;
    }
  }

  const Terms terms_;
  const Correlation<3>& problem_;
  const ChannelsPlan cut_;
  const int64_t positions_, padded_rows_;
  PatchRows<3> patch_rows_;
  // What all tasks read.
  T* packed_ = nullptr;
  Sum* bias_ = nullptr;
  Tap<3>* taps_ = nullptr;
  int64_t* row_offsets_ = nullptr;
};

}  // namespace

const char* decline_channels(const CorrelateImage& problem) {
  if (!has_terms(problem->image.dtype)) return kNoTerms;
  if (problem->channels() > 1 && problem->image.layout.stride[2] != 1)
    return "channels of the image are not neighbours in memory";
  if (problem->channels() == 1 && problem->output.layout.stride[2] != 1 && problem->rows() > 1)
    return "a single channel, and those of the output are not neighbours in memory";
  return nullptr;
}

const char* plan_channels(const Correlation<3>& problem, const Call&, JobSlot& slot) {
  with_terms(problem.image.dtype,
             [&](const auto& terms) { slot.emplace<ChannelsJob<std::decay_t<decltype(terms)>>>(terms, problem); });
  return nullptr;
}

}  // namespace unfoldconv::cpu
