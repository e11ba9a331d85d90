// The correlation engine with positions in the lanes, without gathering them (correlate_engines.h).
//
// Where the stride is 1, all positions of a plane see a tap at one distance, if rows of the image have a border between
// them that is wide enough for both. A task owns a band of rows of the output of one image. It copies the planes that
// these read, some channels at a time, with such borders: [channel, kernel plane, row, column]. From there each tap is
// multiplied where it lies, as a run of channels. Positions are counted along the rows of the copy, so that a few lanes
// per row fall on the border; they are computed, but not stored. Few rows of weights make this faster than to gather a
// panel for them.
#include "cpu/correlate/correlate_engines.h"
#include "cpu/correlate/weight_rows.h"
#include "cpu/shared/panel_cost.h"
#include "cpu/shared/positions.h"
#include "cpu/shared/terms.h"
#include "runtime/workspace.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kChunkTerms = 32;  // channels, or pairs of them, that are copied at a time
constexpr int64_t kLeastTerms = 16;  // shorter runs cost more than a gathered panel
constexpr int64_t kMostBandRows = 256;
constexpr int64_t kMostReach = int64_t{1} << 20;  // of a window along an axis, and of a row; more would not fit anyway

// In products of vectors: what a row of the copy takes, and each vector of it; an element of a weight that is packed;
// and by how much this engine must be ahead, because its lanes begin anywhere in a line of the cache.
constexpr double kRowCost = 40, kVectorCost = 6, kPackCost = 3, kLead = 0.90;

// How a problem is cut up. Of the copy, all sizes are in terms.
struct Plan {
  int64_t front;         // border before the first row of a plane
  int64_t row;           // from one row to the next
  int64_t plane, pitch;  // from one plane of the kernel to the next, and from one channel
  int64_t terms, chunk, chunks;
  int64_t band_rows, bands;
  int64_t lanes;      // of a band, whole vectors
  double time;        // in products of vectors, for each term
  double time_alone;  // the same of one image and group on one thread
};

template <class Terms, int Rank>
void set_band(const Terms& terms, const Correlation<Rank>& problem, int64_t rows, Plan& plan) {
  const Geometry<Rank>& g = problem.geometry;
  plan.band_rows = rows;
  plan.bands = ceil_div(g.positions[1], rows);
  plan.lanes = round_up((rows - 1) * plan.row + g.positions[2], terms.tiles.lanes);
  const int64_t rows_read = rows + (g.kernel[1] - 1) * g.dilation[1], size = sizeof(typename Terms::T);
  plan.plane = plan.front + rows_read * plan.row;
  // Behind the last plane there is room for lanes beyond the last position.
  const int64_t numel = g.kernel[0] * plan.plane + (g.kernel[2] - 1) * g.dilation[2] + terms.most_lanes();
  plan.pitch = line_pitch(numel * size) / size;

  const double products = static_cast<double>(problem.rows()) * g.tap_numel();
  const int64_t vectors = plan.lanes / terms.tiles.lanes, tasks = problem.batch() * problem.groups() * g.positions[0];
  const double task = products * (vectors + kNarrowing * ceil_div(vectors, terms.tiles.vectors)) +
                      g.kernel[0] * rows_read * (kRowCost + kVectorCost * ceil_div(plan.row, terms.tiles.lanes));
  const double pack = kPackCost * products;
  plan.time = task * ceil_div(tasks * plan.bands, torch::stable::get_num_threads()) + pack;
  plan.time_alone = task * g.positions[0] * plan.bands + pack;
}

// What gathering panels takes for one image and group on one thread, in the same measure (best_cut).
template <class Terms, int Rank>
double gathering_time(const Terms& terms, const Correlation<Rank>& problem) {
  const double vectors = static_cast<double>(problem.geometry.position_numel()) / terms.tiles.lanes;
  const double rows = problem.rows(), narrow = kNarrowing * rows / terms.tiles.vectors;
  return vectors * (rows + kGatherRows + narrow) * problem.geometry.tap_numel();
}

// False where no band fits into the limit of memory, or none is fast.
template <class Terms, int Rank>
bool find_plan(const Terms& terms, const Correlation<Rank>& problem, Plan& plan) {
  using Sum = typename Terms::Sum;
  const Geometry<Rank>& g = problem.geometry;
  const int64_t limit = workspace_limit().cpu, reach = (g.kernel[2] - 1) * g.dilation[2] - g.padding_low[2];
  plan.front = std::max<int64_t>(0, g.padding_low[2]);
  plan.row = std::max({g.image[2] + plan.front, g.positions[2] + reach, g.positions[2]});
  for (int axis = 0; axis < Rank; ++axis)
    if (std::max({g.kernel[axis], (g.kernel[axis] - 1) * g.dilation[axis], plan.row}) > kMostReach) return false;
  plan.terms = Terms::count(problem.channels());
  plan.chunk = std::min(plan.terms, kChunkTerms);
  plan.chunks = ceil_div(plan.terms, plan.chunk);
  Plan best{};
  double least = 0;
  for (int64_t rows = std::min(g.positions[1], kMostBandRows); rows > 0; --rows) {
    set_band(terms, problem, rows, plan);
    const bool fits = plan.chunk * plan.pitch * static_cast<int64_t>(sizeof(typename Terms::T)) <= limit / 4 &&
                      problem.rows() * plan.lanes * static_cast<int64_t>(sizeof(Sum)) <= limit / 4;
    if (!fits) continue;
    if (best.time == 0 || plan.time < best.time) best = plan;
    if (least == 0 || plan.time_alone < least) least = plan.time_alone;
  }
  plan = best;
  // No sum may depend on the number of images or threads, so neither may the engine.
  return least > 0 && least < kLead * gathering_time(terms, problem);
}

template <class Terms>
struct Buffers {
  typename Terms::T* copy;
  typename Terms::Sum* sums;
  Run<typename Terms::T>* runs;
  const typename Terms::T** run_rows;  // [runs, rows of a tile]
  int64_t* run_taps;
};

// The weight as [group][row][tap][channel]: where it is, and how far its elements lie apart.
template <class Element>
struct WeightLines {
  const Element* data;
  int64_t group, row;
};

// Writes lines[row][tap][channel], taps in the order of memory, in which they adjoin from `first` on.
template <class Terms, int Rank>
void pack_lines(const Terms& terms, const Planes<Rank>& weight, int64_t taps, int64_t first, int64_t pitch,
                typename Terms::Element* lines) {
  const auto& layout = weight.layout;
  const int64_t rows = layout.count[1], bytes = taps * pitch * static_cast<int64_t>(sizeof(*lines));
  parallel_over(layout.count[0] * rows, bytes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      terms.pack.turn(reinterpret_cast<const typename Terms::From*>(weight.at(row / rows, row % rows).data) + first,
                      layout.stride[2], taps, layout.count[2],
                      reinterpret_cast<typename Terms::T*>(lines + row * taps * pitch), pitch);
  });
}

template <class Terms, int Rank>
bool run(const Terms& terms, const Correlation<Rank>& problem) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;
  const Geometry<Rank>& g = problem.geometry;
  const int64_t channels = problem.channels(), rows = problem.rows(), groups = problem.groups();
  const int64_t taps = g.tap_numel();
  if (terms.tiles.depth != 1 || channels % Terms::kHalves != 0 || Terms::count(channels) < kLeastTerms) return false;
  Plan plan;
  if (!find_plan(terms, problem, plan)) return false;

  // Taps that are lines of channels are read where they lie; others must adjoin.
  const Planes<Rank>& weight = problem.weight;
  const bool in_place = weight.layout.stride[2] == 1 && (std::is_same_v<T, From> || Terms::kHalves == 2);
  int64_t lowest = 0, highest = 0;
  for (int axis = 0; axis < Rank; ++axis) {
    const int64_t reach = (g.kernel[axis] - 1) * weight.layout.axis_stride[axis];
    (reach < 0 ? lowest : highest) += reach;
  }
  if (!in_place && highest - lowest + 1 != taps) return false;
  const int64_t line = line_pitch(channels * static_cast<int64_t>(sizeof(Element))) / sizeof(Element);

  const PlaneLayout<Rank>&image = problem.image.layout, &output = problem.output.layout;
  const int64_t tile_rows = terms.tiles.rows, row_tiles = ceil_div(rows, tile_rows);
  const auto carve = [&](Carver& carver) {
    return Buffers<Terms>{carver.take<T>(plan.chunk * plan.pitch), carver.take<Sum>(rows * plan.lanes),
                          carver.take<Run<T>>(taps), carver.take<const T*>(taps * tile_rows),
                          carver.take<int64_t>(taps)};
  };
  const auto carve_shared = [&](Carver& carver) {
    return std::make_tuple(carver.take<Element>(in_place ? 0 : groups * rows * taps * line),
                           carver.take<Sum>(problem.bias ? groups * rows : 0), carver.take<int64_t>(taps));
  };
  Carver count, shared_count;
  carve(count);
  carve_shared(shared_count);
  const int64_t tasks = problem.batch() * groups * g.positions[0] * plan.bands;
  if (LegacyReport* const report = LegacyReport::wanted()) {
    report->engine(terms.tile_name(terms.most_lanes()), tasks, count.bytes(),
                   shared_count.bytes() + problem.weight_copy,
                   "positions fill the vectors, read from planes with borders, because there are few rows of weights");
    return true;
  }
  const Scratch shared(shared_count.bytes(), *problem.like);
  Carver carver(static_cast<char*>(shared.data_ptr()));
  const auto [packed, bias, weight_offsets] = carve_shared(carver);
  list_offsets<Rank>(g.kernel, weight.layout.axis_stride, weight_offsets);
  if (!in_place) {
    pack_lines(terms, weight, taps, lowest, line, packed);
    for (int64_t tap = 0; tap < taps; ++tap) weight_offsets[tap] = (weight_offsets[tap] - lowest) * line;
  }
  if (problem.bias) widen_bias<Terms>(problem.bias, groups, 1, rows, rows, bias);
  const WeightLines<Element> lines = in_place ? WeightLines<Element>{reinterpret_cast<const Element*>(weight.data),
                                                                     weight.layout.stride[0], weight.layout.stride[1]}
                                              : WeightLines<Element>{packed, rows * taps * line, taps * line};

  const bool serial = 2. * problem.batch() * g.position_numel() * groups * rows * channels * taps < kSerialFlops;
  run_tasks(tasks, serial, *problem.like, carve, [&](int64_t task, const auto& buffers) {
    const TileScope<T> scope(terms.tiles);
    const int64_t band = task % plan.bands, z = task / plan.bands % g.positions[0];
    const int64_t group = task / plan.bands / g.positions[0] % groups;
    const int64_t n = task / plan.bands / g.positions[0] / groups;
    const int64_t first_row = band * plan.band_rows, band_rows = std::min(plan.band_rows, g.positions[1] - first_row);
    const int64_t rows_read = band_rows + (g.kernel[1] - 1) * g.dilation[1];
    const int64_t vectors = ceil_div((band_rows - 1) * plan.row + g.positions[2], int64_t{terms.tiles.lanes});
    const int64_t panels = ceil_div(vectors, int64_t{terms.tiles.vectors});
    const From* const planes =
        reinterpret_cast<const From*>(problem.image.data) + n * image.stride[0] + group * image.stride[1];
    const Element* const weights = lines.data + group * lines.group;
    const auto plane_read = [&](int64_t kz) { return z * g.stride[0] + kz * g.dilation[0] - g.padding_low[0]; };
    const auto beyond = [](int64_t index, int64_t size) {
      return static_cast<uint64_t>(index) >= static_cast<uint64_t>(size);
    };

    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      const int64_t first = chunk * plan.chunk, length = std::min(plan.chunk, plan.terms - first);
      const int64_t first_channel = first * Terms::kHalves;
      // One channel after the other, whose rows adjoin in memory.
      for (int64_t c = 0; c < length; ++c) {
        T* const copy = buffers.copy + c * plan.pitch;
        for (int64_t kz = 0; kz < g.kernel[0]; ++kz) {
          if (beyond(plane_read(kz), g.image[0])) continue;
          const From* const plane =
              planes + (first_channel + c * Terms::kHalves) * image.stride[2] + plane_read(kz) * image.axis_stride[0];
          T* to = copy + kz * plan.plane;
          to = std::fill_n(to, plan.front, T{});
          for (int64_t y = first_row - g.padding_low[1], end = y + rows_read; y < end; ++y, to += plan.row) {
            if (beyond(y, g.image[1])) {
              std::fill_n(to, plan.row, T{});
              continue;
            }
            const From* const from = plane + y * image.axis_stride[1];
            if constexpr (std::is_same_v<T, From>)
              std::fill(std::copy_n(from, g.image[2], to), to + plan.row, T{});
            else
              terms.pack.transpose({from, 1, image.stride[2], g.image[2], Terms::kHalves, plan.row}, to, 0);
          }
        }
        std::fill(copy + g.kernel[0] * plan.plane, copy + plan.pitch, T{});
      }

      // A block of a sum is that of so many taps, whichever of them are left out because they read only border.
      const int64_t block_taps = std::max<int64_t>(1, kBlockTerms<T> / length);
      int64_t runs = 0;
      for (int64_t tap = 0; tap < taps; ++tap) {
        int64_t index[Rank];
        unravel<Rank>(tap, g.kernel, index);
        if (beyond(plane_read(index[0]), g.image[0])) continue;
        if (runs > 0 && tap / block_taps != buffers.run_taps[runs - 1] / block_taps)
          buffers.runs[runs - 1].ends_block = true;
        buffers.run_taps[runs] = tap;
        const int64_t column = plan.front + index[2] * g.dilation[2] - g.padding_low[2];
        buffers.runs[runs] = {buffers.run_rows + runs * tile_rows,
                              index[0] * plan.plane + index[1] * g.dilation[1] * plan.row + column, length, false};
        ++runs;
      }

      for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t vector = vectors * panel / panels, lane = vector * terms.tiles.lanes;
        const int64_t width = (vectors * (panel + 1) / panels - vector) * terms.tiles.lanes;
        for (int64_t tile = 0; tile < row_tiles; ++tile) {
          // Tiles of nearly one height: low ones read their lanes for few products.
          const int64_t row = rows * tile / row_tiles, count = rows * (tile + 1) / row_tiles - row;
          for (int64_t j = 0; j < runs; ++j)
            for (int64_t i = 0; i < count; ++i)
              buffers.run_rows[j * tile_rows + i] = reinterpret_cast<const T*>(
                  weights + (row + i) * lines.row + weight_offsets[buffers.run_taps[j]] + first_channel);
          const Start start = chunk > 0 ? Start::sum : problem.bias ? Start::row_bias : Start::zero;
          terms.multiply(
              width, count,
              {buffers.runs, runs, 0, buffers.copy + lane, 1, plan.pitch, buffers.sums + row * plan.lanes + lane,
               plan.lanes, start, problem.bias ? bias + group * rows + row : nullptr});
        }
      }
    }
    From* const target = reinterpret_cast<From*>(problem.output.data) + n * output.stride[0] +
                         group * output.stride[1] + z * output.axis_stride[0] + first_row * output.axis_stride[1];
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t y = 0; y < band_rows; ++y)
        terms.pack.store(buffers.sums + row * plan.lanes + y * plan.row,
                         target + row * output.stride[2] + y * output.axis_stride[1], output.axis_stride[2],
                         g.positions[2]);
  });
  return true;
}

}  // namespace

bool correlate_planes(const Correlation<3>& problem) {
  const Geometry<3>& g = problem.geometry;
  // A plane that only one row of taps reads gains too little.
  if (problem.variants() > 1 || g.kernel[1] == 1 || g.kernel[2] == 1) return false;
  if (g.stride[1] != 1 || g.stride[2] != 1 || problem.image.layout.axis_stride[2] != 1) return false;
  bool done = false;
  with_terms(problem.image.dtype, [&](const auto& terms) { done = run(terms, problem); });
  return done;
}

}  // namespace unfoldconv::cpu
