// The correlation engine with positions in the lanes (correlation.h).
//
// A task owns a panel of positions, counted over all images, and some groups or rows of the output. It gathers the
// terms of the panel, a chunk of them at a time, and runs every tile of rows over the chunk while that is in cache.
#include "../workspace.h"
#include "correlation.h"
#include "correlation_types.h"
#include "positions.h"

namespace unfoldconv::cpu {
namespace {

// Of a panel chunk: a good part of a second-level cache.
constexpr int64_t kPanelBytes = 256 << 10;
constexpr int64_t kPackedRows = 32;
constexpr int64_t kGatherRows = 16;  // gathering a panel takes as long as multiplying it by so many rows

// Rows of a weight as lines of terms, channels first and then taps: where they lie, or packed.
template <class Terms>
struct WeightRows {
  using T = typename Terms::T;
  const T* data;
  int64_t group_stride, row_stride;
};

template <class Terms, int Rank>
bool rows_are_lines(const Planes<Rank>& weight, const int64_t (&kernel)[Rank]) {
  if (!std::is_same_v<typename Terms::T, typename Terms::From> && Terms::kHalves == 1) return false;
  const int64_t taps = Geometry<Rank>::product(kernel), channels = weight.layout.count[2];
  const auto whole = [](int64_t elements) { return elements % Terms::kHalves == 0; };
  const auto& stride = weight.layout.stride;
  return is_line<Rank>(weight.layout, kernel) && (channels == 1 || stride[2] == taps) && whole(channels * taps) &&
         whole(stride[0]) && whole(stride[1]);
}

// Terms from one packed row to the next: room for what pack.taps writes beyond a row, and an odd number of cache lines,
// so that neighbouring rows do not compete for the same sets of a cache.
template <class T>
int64_t row_pitch(int64_t terms) {
  const int64_t size = sizeof(T);
  return (ceil_div(terms * size + kLinesSlack, kAlignment) | 1) * kAlignment / size;
}

// The weight as [groups, variants, rows, pitch]. A task packs a few rows at a time, because neighbouring rows of one
// channel may be neighbours in memory when neighbouring channels are pages apart.
template <class Terms, int Rank>
void pack_rows(const Terms& terms, const Correlation<Rank>& problem, int64_t pitch, const int64_t* offsets,
               typename Terms::T* packed) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  const auto& layout = problem.weights[0].layout;
  const int64_t variants = problem.variants(), rows = layout.count[1], channels = layout.count[2];
  const int64_t taps = problem.geometry.tap_numel();
  const int64_t blocks = ceil_div(rows, kPackedRows);
  parallel_over(layout.count[0] * variants * blocks, kPackedRows * pitch * sizeof(T), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block % blocks * kPackedRows, count = std::min(kPackedRows, rows - first);
      const Planes<Rank>& weight = problem.weights[block / blocks % variants];
      const From* const from = reinterpret_cast<const From*>(weight.at(block / blocks / variants, first).data);
      T* const to = packed + (block / blocks * rows + first) * pitch;
      const int64_t elements = pitch * Terms::kHalves;
      if (taps == 1 && layout.stride[2] == 1)
        for (int64_t row = 0; row < count; ++row)
          terms.pack.line(from + row * layout.stride[1], 1, to + row * pitch, channels);
      else if (taps == 1 && layout.stride[1] == 1)
        terms.pack.turn(from, layout.stride[2], count, channels, to, elements);
      else
        terms.pack.taps({from, layout.stride[1], count, layout.stride[2], channels, offsets, taps,
                         problem.geometry.kernel[Rank - 1], elements},
                        to);
      if (Terms::kHalves == 2 && channels * taps % 2 != 0)
        for (int64_t row = 0; row < count; ++row) reinterpret_cast<uint16_t*>(to + row * pitch)[channels * taps] = 0;
    }
  });
}

template <class Terms, int Rank>
struct Buffers {
  using T = typename Terms::T;
  using Sum = typename Terms::Sum;
  T* panel;
  Sum *sums, *tile;
  PositionPiece<Rank>* positions;
  TapPieces* taps;
  Piece* pieces;
};

// How a problem is cut up.
struct Plan {
  int64_t panel_lanes, panels;
  int64_t terms, chunk, chunks;  // of a sum
  int64_t rows, block_rows, row_blocks;
  int64_t block_groups, group_blocks;
  int64_t tap_pieces;  // at most, of one tap
};

// Into how many parts, at most `most`, the rows of `panels` panels are best cut: more of them keep threads busier, but
// each gathers its panel again. No result depends on it, so it may follow the number of threads.
int64_t parts_of_rows(int64_t panels, int64_t rows, int64_t most) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t best = 1;
  double least = 0;
  for (int64_t parts = 1; parts <= most; ++parts) {
    const double time = ceil_div(panels * parts, threads) * (1. * rows / parts + kGatherRows);
    if (parts == 1 || time < least) least = time, best = parts;
  }
  return best;
}

template <class Terms, int Rank>
Plan plan_of(const Terms& terms, const Correlation<Rank>& problem) {
  const auto& [count, stride, axis_stride] = problem.outputs[0].layout;
  const int64_t limit = workspace_limit().cpu;
  Plan plan;
  const int64_t positions = count[0] * problem.geometry.position_numel();
  plan.panel_lanes = std::min(terms.most_lanes(), terms.width(positions));
  plan.panels = ceil_div(positions, plan.panel_lanes);
  plan.tap_pieces = most_pieces<Rank>(plan.panel_lanes, problem.geometry.positions) + kTileVectors;
  plan.rows = static_cast<int64_t>(problem.outputs.size()) * count[2];
  plan.terms = Terms::count(problem.image.layout.count[2] * problem.geometry.tap_numel());
  const int64_t panel_bytes = std::min(kPanelBytes, limit / 4);
  // Not by panel_lanes: where a sum is cut must not depend on the batch.
  plan.chunk = std::max<int64_t>(1, panel_bytes / (terms.most_lanes() * sizeof(typename Terms::T)));
  plan.chunks = std::max<int64_t>(1, ceil_div(plan.terms, plan.chunk));
  plan.chunk = std::min(plan.chunk, round_up(ceil_div(plan.terms, plan.chunks), terms.tiles.depth));
  // Panels first, then groups, then rows, which gather the same panel again.
  plan.group_blocks = std::min(count[1], ceil_div(kTasksPerProblem, plan.panels));
  plan.block_groups = ceil_div(count[1], plan.group_blocks);
  plan.group_blocks = ceil_div(count[1], plan.block_groups);
  const int64_t tiles = ceil_div(plan.rows, terms.tiles.rows);
  int64_t parts =
      parts_of_rows(plan.panels * plan.group_blocks, plan.rows, std::min(kTasksPerProblem, ceil_div(tiles, 4)));
  if (plan.chunks > 1) {
    const int64_t tile_bytes = terms.tiles.rows * plan.panel_lanes * sizeof(typename Terms::Sum);
    parts = std::max(parts, ceil_div(tiles, std::max<int64_t>(1, limit / 4 / tile_bytes)));
  }
  plan.block_rows = ceil_div(tiles, parts) * terms.tiles.rows;
  plan.row_blocks = ceil_div(plan.rows, plan.block_rows);
  return plan;
}

template <class Terms, int Rank>
bool run(const Terms& terms, const Correlation<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  const Plan plan = plan_of(terms, problem);
  const int64_t piece_bytes = problem.geometry.tap_numel() * plan.tap_pieces * static_cast<int64_t>(sizeof(Piece));
  if (piece_bytes > workspace_limit().cpu / 2) return false;
  const Planes<Rank>& image = problem.image;
  const Geometry<Rank>& geometry = problem.geometry;
  const PlaneLayout<Rank>& output = problem.outputs[0].layout;
  const int64_t groups = output.count[1], group_rows = output.count[2];
  const int64_t variants = problem.outputs.size(), taps = geometry.tap_numel(), channels = image.layout.count[2];
  const int64_t positions = output.count[0] * geometry.position_numel();
  const int64_t per_image = geometry.position_numel();

  const auto carve = [&](Carver& carver) {
    return Buffers<Terms, Rank>{carver.take<T>(plan.chunk * plan.panel_lanes),
                                carver.take<Sum>(plan.chunks > 1 ? plan.block_rows * plan.panel_lanes : 0),
                                carver.take<Sum>(terms.tiles.rows * plan.panel_lanes),
                                carver.take<PositionPiece<Rank>>(plan.tap_pieces),
                                carver.take<TapPieces>(taps),
                                carver.take<Piece>(taps * plan.tap_pieces)};
  };
  Carver count;
  carve(count);

  // What all tasks read: the weight as rows, and the bias.
  const bool direct_rows = variants == 1 && rows_are_lines<Terms, Rank>(problem.weights[0], geometry.kernel);
  const int64_t pitch = row_pitch<T>(plan.terms);
  Carver shared_count;
  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<T>(direct_rows ? 0 : groups * plan.rows * pitch),
                           carver.take<Sum>(problem.bias ? groups * plan.rows : 0), carver.take<Tap<Rank>>(taps),
                           carver.take<int64_t>(taps));
  };
  carve_shared(shared_count);
  const int64_t tasks = plan.panels * plan.group_blocks * plan.row_blocks;
  if (Report* const report = Report::wanted()) {
    report->engine(Engine::positions, terms.tile_name(plan.panel_lanes), tasks, count.bytes(), shared_count.bytes(),
                   "positions fill the vectors, because channels do not adjoin in memory or are few");
    return true;
  }
  const Tensor shared = allocate_bytes(shared_count.bytes(), problem.like);
  Carver carver(shared);
  const auto [packed, bias, tap_list, weight_offsets] = carve_shared(carver);
  WeightRows<Terms> weight{packed, plan.rows * pitch, pitch};
  if (direct_rows) {
    const auto& layout = problem.weights[0].layout;
    weight = {reinterpret_cast<const T*>(problem.weights[0].data), layout.stride[0] / Terms::kHalves,
              layout.stride[1] / Terms::kHalves};
  } else if (plan.terms > 0) {  // a phase of an input gradient may have no taps
    list_offsets<Rank>(geometry.kernel, problem.weights[0].layout.axis_stride, weight_offsets);
    pack_rows(terms, problem, pitch, weight_offsets, packed);
  }
  if (problem.bias) widen_bias<Terms>(problem.bias, groups, variants, group_rows, plan.rows, bias);
  list_taps<Rank>(geometry, image.layout.axis_stride, tap_list);
  const bool output_lines = is_line<Rank>(output, geometry.positions);

  const bool serial = 2. * positions * groups * plan.rows * channels * taps < kSerialFlops;
  run_tasks(tasks, serial, problem.like, carve, [&](int64_t task, const auto& buffers) {
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
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
        panel.first = chunk * plan.chunk;
        panel.count = std::max<int64_t>(0, std::min(plan.chunk, plan.terms - panel.first));
        if (panel.count > 0) terms.pack.panel(panel, buffers.panel);
        for (int64_t row = first_row; row < end_row;) {
          // A tile keeps to one output.
          const int64_t variant = row / group_rows, row_of_group = row % group_rows;
          const int64_t rows = std::min({int64_t{terms.tiles.rows}, end_row - row, group_rows - row_of_group});
          From* const target = reinterpret_cast<From*>(problem.outputs[variant].data) + group * output.stride[1] +
                               row_of_group * output.stride[2];
          const T* weight_rows[kMostTileRows<T>];
          const Run<T> line{weight_rows, 0, panel.count, true};
          for (int64_t i = 0; i < rows; ++i)
            weight_rows[i] = weight.data + group * weight.group_stride + (row + i) * weight.row_stride + panel.first;
          TileArguments<T> tile{&line, 1, 0, buffers.panel, 0, width, buffers.tile, width, Start::zero, nullptr};
          if (direct) {
            tile.c = reinterpret_cast<Sum*>(target + first / per_image * output.stride[0] + first % per_image);
            tile.c_step = output.stride[2];
          } else if (plan.chunks > 1) {
            tile.c = buffers.sums + (row - first_row) * width;
          }
          if (chunk > 0) {
            tile.start = Start::sum;
          } else if (problem.bias) {
            tile.start = Start::row_bias;
            tile.bias = bias + group * plan.rows + row;
          }
          terms.multiply(width, rows, tile);
          if (!direct && chunk == plan.chunks - 1)
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

bool correlate_positions(const Correlation<3>& problem) {
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
