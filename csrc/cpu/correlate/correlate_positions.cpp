// The correlation engine with positions in the lanes (correlate_engines.h).
//
// A task owns a panel of positions, counted over all images, and some groups or rows of the output. It gathers the
// terms of the panel, a chunk of them at a time, and runs every tile of rows over the chunk while that is in cache.
// Terms are in the order in which the weight has them: channels first and then taps, or taps first, where a sum is a
// run for each tap and taps that read nothing but padding are left out.
#include "cpu/correlate/correlate_engines.h"
#include "cpu/correlate/weight_rows.h"
#include "cpu/shared/panel_cost.h"
#include "cpu/shared/positions.h"
#include "cpu/shared/tap_chunks.h"
#include "cpu/shared/terms.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {
namespace {

// Of a panel chunk: a good part of a second-level cache.
constexpr int64_t kPanelBytes = 256 << 10;
// To gather an element of a panel takes as long as to pack so many bytes of a weight.
constexpr int64_t kGatherBytes = 32;
constexpr int64_t kLinesAhead = 4;  // of each run of the next tile's weights, until hardware fetches ahead by itself

// Where the terms of a run come from.
struct RunOrigin {
  int64_t weight;      // in elements, from the beginning of a row
  int64_t tap, first;  // with taps first: which, and of its terms the first
};

template <class Terms, int Rank>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  T* panel;
  Sum *sums, *tile;
  PositionPiece<Rank>* positions;
  TapPieces* taps;
  Piece* pieces;
  Run<T>* runs;
  RunOrigin* origins;  // of each run
  const T** run_rows;  // [runs, rows of a tile]
};

// How a problem is cut up.
struct Plan {
  bool taps_first;
  int64_t panel_lanes, panels;
  int64_t terms;     // of a sum
  TapChunks chunks;  // of a sum; channels first, its terms are those of a single tap
  int64_t rows, block_rows, row_blocks;
  int64_t block_groups, group_blocks;
  int64_t tap_pieces;  // at most, of one tap
};

// The most terms of a chunk. Not by the lanes of a panel at hand: where a sum is cut must not depend on the batch.
template <class Terms>
int64_t most_terms(const Terms& terms) {
  const int64_t panel_bytes = std::min(kPanelBytes, workspace_limit().cpu / 4);
  return std::max<int64_t>(1, panel_bytes / (terms.most_lanes() * sizeof(typename Terms::T)));
}

template <class Terms, int Rank>
Plan plan_of(const Terms& terms, const Correlation<Rank>& problem) {
  const auto& [count, stride, axis_stride] = problem.output.layout;
  const int64_t limit = workspace_limit().cpu;
  Plan plan;
  const int64_t positions = count[0] * problem.geometry.position_numel();
  plan.taps_first = taps_are_lines<Terms, Rank>(problem.weight);
  plan.rows = problem.variants() * count[2];
  const int64_t tiles = ceil_div(plan.rows, terms.tiles.rows);
  const Cut cut = best_cut(ceil_div(positions, int64_t{terms.tiles.lanes}), terms.tiles.vectors, count[1], plan.rows,
                           std::min(kTasksPerProblem, ceil_div(tiles, 4)));
  plan.panel_lanes = cut.panel_vectors * terms.tiles.lanes;
  plan.panels = ceil_div(positions, plan.panel_lanes);
  plan.tap_pieces = most_pieces<Rank>(plan.panel_lanes, problem.geometry.positions) + kTileVectors;
  plan.terms = Terms::count(problem.image.layout.count[2] * problem.geometry.tap_numel());
  const int64_t taps = problem.geometry.tap_numel(), most = most_terms(terms), depth = terms.tiles.depth;
  if (plan.taps_first)
    plan.chunks = {taps, plan.terms / taps, std::min(most, kChunkTerms), depth};
  else
    plan.chunks = {1, plan.terms, most, depth};
  // Panels first, then groups, then rows, which gather the same panel again.
  plan.group_blocks = std::min(count[1], ceil_div(kTasksPerProblem, plan.panels));
  plan.block_groups = ceil_div(count[1], plan.group_blocks);
  plan.group_blocks = ceil_div(count[1], plan.block_groups);
  int64_t parts = cut.parts;
  if (plan.chunks.count > 1) {
    const int64_t tile_bytes = terms.tiles.rows * plan.panel_lanes * sizeof(typename Terms::Sum);
    parts = std::max(parts, ceil_div(tiles, std::max<int64_t>(1, limit / 4 / tile_bytes)));
  }
  plan.block_rows = ceil_div(tiles, parts) * terms.tiles.rows;
  plan.row_blocks = ceil_div(plan.rows, plan.block_rows);
  return plan;
}

// Gathers the terms of a panel, taps first, and lists their runs; returns how many there are. To leave out a tap that
// reads only padding changes no bit of a sum, unless its weight is infinite or NaN.
template <class Terms, int Rank>
int64_t gather_taps(const Terms& terms, PanelArguments<typename Terms::From> panel, const int64_t* weight_offsets,
                    const Buffers<Terms, Rank>& buffers) {
  using T = typename Terms::T;
  const int64_t tap_terms = panel.channels / Terms::kHalves, width = int64_t{panel.vectors} * terms.tiles.lanes;
  const int64_t begin = panel.first, end = begin + panel.count;
  const int64_t block_taps = taps_of_block<T>(tap_terms);
  int64_t runs = 0, rows = 0;
  for (int64_t tap = begin / tap_terms; tap * tap_terms < end; ++tap) {
    const int32_t* const pieces = buffers.taps[tap].count;
    if (std::all_of(pieces, pieces + panel.vectors, [](int32_t count) { return count == 0; })) continue;
    const int64_t first = std::max<int64_t>(0, begin - tap * tap_terms);
    const int64_t length = std::min(tap_terms, end - tap * tap_terms) - first;
    if (runs > 0 && tap / block_taps != buffers.origins[runs - 1].tap / block_taps)
      buffers.runs[runs - 1].ends_block = true;
    buffers.origins[runs] = {weight_offsets[tap] + first * Terms::kHalves, tap, first};
    buffers.runs[runs] = {buffers.run_rows + runs * terms.tiles.rows, rows, length, false};
    rows += length;
    ++runs;
  }
  const TapPieces* const taps = panel.tap_pieces;
  panel.taps = 1;
  for (int64_t term = 0; term < tap_terms; term += kGatherTerms)
    for (int64_t i = 0; i < runs; ++i) {
      const auto& [weight, tap, first] = buffers.origins[i];
      panel.first = std::max(term, first);
      panel.count = std::min(term + kGatherTerms, first + buffers.runs[i].length) - panel.first;
      panel.tap_pieces = taps + tap;
      if (panel.count > 0) terms.pack.panel(panel, buffers.panel + (buffers.runs[i].b + panel.first - first) * width);
    }
  return runs;
}

template <class Terms, int Rank>
bool run(const Terms& terms, const Correlation<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;
  const Plan plan = plan_of(terms, problem);
  const int64_t piece_bytes = problem.geometry.tap_numel() * plan.tap_pieces * static_cast<int64_t>(sizeof(Piece));
  if (piece_bytes > workspace_limit().cpu / 2) return false;
  const Planes<Rank>& image = problem.image;
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>& output = problem.output.layout;
  const int64_t groups = output.count[1], group_rows = output.count[2];
  const int64_t variants = problem.variants(), taps = geometry.tap_numel(), channels = image.layout.count[2];
  const int64_t positions = output.count[0] * geometry.position_numel();
  const int64_t per_image = geometry.position_numel();

  const int64_t most_runs = plan.taps_first ? taps : 1;  // of a chunk

  const auto carve = [&](Carver& carver) {
    return Buffers<Terms, Rank>{carver.take<T>(plan.chunks.most_terms() * plan.panel_lanes),
                                carver.take<Sum>(plan.chunks.count > 1 ? plan.block_rows * plan.panel_lanes : 0),
                                carver.take<Sum>(terms.tiles.rows * plan.panel_lanes),
                                carver.take<PositionPiece<Rank>>(plan.tap_pieces),
                                carver.take<TapPieces>(taps),
                                carver.take<Piece>(taps * plan.tap_pieces),
                                carver.take<Run<T>>(most_runs),
                                carver.take<RunOrigin>(most_runs),
                                carver.take<const T*>(most_runs * terms.tiles.rows)};
  };
  Carver count;
  carve(count);

  // What all tasks read: the weight as rows, and the bias.
  const bool in_place = plan.taps_first || rows_are_lines<Terms, Rank>(problem.weight, geometry.kernel);
  const int64_t pitch = row_pitch<T>(plan.terms);
  Carver shared_count;
  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<T>(in_place ? 0 : groups * plan.rows * pitch),
                           carver.take<Sum>(problem.bias ? groups * plan.rows : 0), carver.take<Tap<Rank>>(taps),
                           carver.take<int64_t>(taps));
  };
  carve_shared(shared_count);
  const int64_t tasks = plan.panels * plan.group_blocks * plan.row_blocks;
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine(
        terms.tile_name(plan.panel_lanes), tasks, count.bytes(), shared_count.bytes() + problem.weight_copy,
        "positions fill the vectors, because channels do not adjoin in memory, or are few, or positions are");
    return true;
  }
  const Scratch shared(shared_count.bytes(), *problem.like);
  Carver carver(static_cast<char*>(shared.data_ptr()));
  const auto [packed, bias, tap_list, weight_offsets] = carve_shared(carver);
  list_offsets<Rank>(geometry.kernel, problem.weight.layout.axis_stride, weight_offsets);
  if (!in_place) pack_rows(terms, problem, pitch, weight_offsets, packed);
  const PlaneLayout<Rank>& weight_layout = problem.weight.layout;
  const auto weight_row = [&, packed = packed](int64_t group, int64_t variant, int64_t row) {
    if (!in_place)
      return reinterpret_cast<const Element*>(packed + ((group * variants + variant) * group_rows + row) * pitch);
    return reinterpret_cast<const Element*>(problem.weight_of(variant).at(group, row).data);
  };
  const int64_t row_stride = in_place ? weight_layout.stride[1] : pitch * Terms::kHalves;
  if (problem.bias) widen_bias<Terms>(problem.bias, groups, variants, group_rows, plan.rows, bias);
  list_taps<Rank>(geometry, image.layout.axis_stride, tap_list);
  const bool output_lines = is_line<Rank>(output, geometry.positions);

  const bool serial = 2. * positions * groups * plan.rows * channels * taps < kSerialFlops;
  run_tasks(tasks, serial, *problem.like, carve, [&](int64_t task, const auto& buffers) {
    const TileScope<T> scope(terms.tiles);
    const int64_t first_row = task % plan.row_blocks * plan.block_rows;
    const int64_t end_row = std::min(plan.rows, first_row + plan.block_rows);
    const int64_t first_group = task / plan.row_blocks % plan.group_blocks * plan.block_groups;
    const int64_t end_group = std::min(groups, first_group + plan.block_groups);
    const int64_t first = task / plan.row_blocks / plan.group_blocks * plan.panel_lanes;
    const int64_t lanes = std::min(plan.panel_lanes, positions - first), width = terms.width(lanes);
    const int vectors = static_cast<int>(width / terms.tiles.lanes);

    const int pieces = split_positions<Rank>(first, lanes, geometry.positions, buffers.positions);
    Piece* next = buffers.pieces;
    for (int64_t tap = 0; tap < taps; ++tap)
      next = pieces_of_tap<Rank>(tap_list[tap], geometry, image.layout, buffers.positions, pieces, terms.tiles.lanes,
                                 buffers.taps[tap], next);
    const int stores = output_lines ? join_pieces<Rank>(buffers.positions, pieces) : pieces;
    const bool direct = std::is_same_v<Sum, From> && output_lines && lanes == width &&
                        first / per_image == (first + lanes - 1) / per_image;

    for (int64_t group = first_group; group < end_group; ++group) {
      PanelArguments<From> panel{reinterpret_cast<const From*>(image.data) + group * image.layout.stride[1],
                                 image.layout.stride[2],
                                 geometry.stride[Rank - 1] * image.layout.axis_stride[Rank - 1],
                                 channels,
                                 taps,
                                 0,
                                 0,
                                 buffers.taps,
                                 vectors};
      for (int64_t chunk = 0; chunk < plan.chunks.count; ++chunk) {
        panel.first = plan.chunks.first_term(chunk);
        panel.count = std::min(plan.terms, plan.chunks.first_term(chunk + 1)) - panel.first;
        int64_t runs = 1;
        if (plan.taps_first) {
          runs = gather_taps(terms, panel, weight_offsets, buffers);
        } else {
          terms.pack.panel(panel, buffers.panel);
          buffers.runs[0] = {buffers.run_rows, 0, panel.count, true};
          buffers.origins[0] = {panel.first * Terms::kHalves, 0, 0};
        }
        for (int64_t row = first_row; row < end_row;) {
          // A tile keeps to one output.
          const int64_t variant = row / group_rows, row_of_group = row % group_rows;
          const int64_t rows = std::min({int64_t{terms.tiles.rows}, end_row - row, group_rows - row_of_group});
          From* const target = reinterpret_cast<From*>(problem.output_of(variant).data) + group * output.stride[1] +
                               row_of_group * output.stride[2];
          const Element* const weight = weight_row(group, variant, row_of_group);
          for (int64_t j = 0; j < runs; ++j)
            for (int64_t i = 0; i < rows; ++i)
              buffers.run_rows[j * terms.tiles.rows + i] =
                  reinterpret_cast<const T*>(weight + i * row_stride + buffers.origins[j].weight);
          if (row + rows < end_row) {
            const Element* const next = weight_row(group, (row + rows) / group_rows, (row + rows) % group_rows);
            for (int64_t j = 0; j < runs; ++j)
              for (int64_t i = 0; i < rows; ++i)
                for (int64_t line = 0; line < kLinesAhead; ++line)
                  __builtin_prefetch(next + i * row_stride + buffers.origins[j].weight +
                                         line * (kAlignment / static_cast<int64_t>(sizeof(Element))),
                                     0, 2);
          }
          TileArguments<T> tile{buffers.runs, runs,         0,     buffers.panel, width,
                                width,        buffers.tile, width, Start::zero,   nullptr};
          if (direct) {
            tile.c = reinterpret_cast<Sum*>(target + first / per_image * output.stride[0] + first % per_image);
            tile.c_step = output.stride[2];
          } else if (plan.chunks.count > 1) {
            tile.c = buffers.sums + (row - first_row) * width;
          }
          if (chunk > 0) {
            tile.start = Start::sum;
          } else if (problem.bias) {
            tile.start = Start::row_bias;
            tile.bias = bias + group * plan.rows + row;
          }
          terms.multiply(width, rows, tile);
          if (!direct && chunk == plan.chunks.count - 1)
            for (int64_t i = 0; i < rows; ++i)
              for (int piece = 0; piece < stores; ++piece)
                terms.pack.store(tile.c + i * width + buffers.positions[piece].lane,
                                 target + i * output.stride[2] + offset_of<Rank>(buffers.positions[piece], output),
                                 output.axis_stride[Rank - 1], buffers.positions[piece].length);
          row += rows;
        }
      }
    }
  });
  return true;
}

}  // namespace

bool few_positions(const Correlation<3>& problem) {
  bool few = false;
  with_terms(problem.image.dtype, [&](const auto& terms) {
    using Terms = std::decay_t<decltype(terms)>;
    const int64_t row_bytes =
        problem.variants() * problem.rows() * static_cast<int64_t>(sizeof(typename Terms::Element));
    few = taps_are_lines<Terms>(problem.weight) && most_terms(terms) >= kChunkTerms &&
          row_bytes >= kGatherBytes * problem.batch() * problem.geometry.position_numel();
  });
  return few;
}

bool correlate_positions(const Correlation<3>& problem) {
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
