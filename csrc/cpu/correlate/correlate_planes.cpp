// The correlation engine with positions in the lanes, without gathering them (correlate_engines.h).
//
// Where the stride is 1, all positions of a plane see a tap at one distance, if rows of the image have a border between
// them that is wide enough for both. A task owns a band of rows of the output of one image. It copies the planes that
// these read, some channels at a time, with such borders: [channel, kernel plane, row, column]. From there each tap is
// multiplied where it lies, as a run of channels. Positions are counted along the rows of the copy, so that a few lanes
// per row fall on the border; they are computed, but not stored. Few rows of weights make this faster than to gather a
// panel for them.
#include "cpu/correlate/correlate_engines.h"
#include "cpu/correlate/planes_plan.h"
#include "cpu/shared/tap_chunks.h"

namespace unfoldconv::cpu {
namespace {

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

// Writes lines[row][tap][channel], taps in the order of memory, in which they are neighbours from `first` on.
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

template <class Terms>
bool reads_in_place(const Planes<3>& weight) {
  return weight.layout.stride[2] == 1 &&
         (std::is_same_v<typename Terms::T, typename Terms::From> || Terms::kHalves == 2);
}

template <class Terms>
class PlanesJob final : public TaskJob<PlanesJob<Terms>> {
  using T = typename Terms::T;
  using From = typename Terms::From;
  using Sum = typename Terms::Sum;
  using Element = typename Terms::Element;
  using Own = Buffers<Terms>;

 public:
  PlanesJob(const Terms& terms, const Correlation<3>& problem, const PlanesPlan& cut)
      : terms_(terms),
        problem_(problem),
        cut_(cut),
        rows_(problem.rows()),
        taps_(problem.geometry.tap_numel()),
        in_place_(reads_in_place<Terms>(problem.weight)),
        line_(line_pitch(problem.channels() * static_cast<int64_t>(sizeof(Element))) / sizeof(Element)) {
    Plan& plan = this->plan_;
    plan.why = "positions fill the vectors, read from planes with borders, because there are few rows of weights";
    plan.tile_rows = terms.tiles.rows;
    plan.tile_lanes = terms.most_lanes();
    plan.tasks = problem.batch() * problem.groups() * problem.geometry.positions[0] * cut.bands;
    plan.serial = problem.flops() < kSerialFlops;
    plan.copied_bytes = problem.weight_copy;
    this->measure();
  }

  Own buffers(Carver& carver) const {
    return {carver.take<T>(cut_.chunk * cut_.pitch), carver.take<Sum>(rows_ * cut_.lanes), carver.take<Run<T>>(taps_),
            carver.take<const T*>(taps_ * terms_.tiles.rows), carver.take<int64_t>(taps_)};
  }

  void share(Carver& carver) {
    packed_ = carver.take<Element>(in_place_ ? 0 : problem_.groups() * rows_ * taps_ * line_);
    bias_ = carver.take<Sum>(problem_.bias ? problem_.groups() * rows_ : 0);
    weight_offsets_ = carver.take<int64_t>(taps_);
  }

  void fill(const Call&) {
    const Planes<3>& weight = problem_.weight;
    list_offsets<3>(problem_.geometry.kernel, weight.layout.axis_stride, weight_offsets_);
    if (in_place_) {
      lines_ = {reinterpret_cast<const Element*>(weight.data), weight.layout.stride[0], weight.layout.stride[1]};
    } else {
      const int64_t lowest = *std::min_element(weight_offsets_, weight_offsets_ + taps_);
      pack_lines(terms_, weight, taps_, lowest, line_, packed_);
      for (int64_t tap = 0; tap < taps_; ++tap) weight_offsets_[tap] = (weight_offsets_[tap] - lowest) * line_;
      lines_ = {packed_, rows_ * taps_ * line_, taps_ * line_};
    }
    if (problem_.bias) widen_bias<Terms>(problem_.bias, problem_.groups(), 1, rows_, rows_, bias_);
  }

  void run_task(const Call&, int64_t task, const Own& own) const {
    const TileScope<T> scope(terms_.tiles);
    const Geometry<3>& g = problem_.geometry;
    Band band;
    band.z = task / cut_.bands % g.positions[0];
    band.group = task / cut_.bands / g.positions[0] % problem_.groups();
    band.n = task / cut_.bands / g.positions[0] / problem_.groups();
    band.first_row = task % cut_.bands * cut_.band_rows;
    band.rows = std::min(cut_.band_rows, g.positions[1] - band.first_row);
    for (int64_t chunk = 0; chunk < cut_.chunks; ++chunk) {
      const int64_t first = chunk * cut_.chunk, length = std::min(cut_.chunk, cut_.terms - first);
      for (int64_t c = 0; c < length; ++c) copy_planes(band, (first + c) * Terms::kHalves, own.copy + c * cut_.pitch);
      multiply(band, chunk, list_runs(band, length, own), own);
    }
    store(band, own);
  }

 private:
  // Rows of the output of one image, group and plane.
  struct Band {
    int64_t n, group, z;
    int64_t first_row, rows;
  };

  static bool beyond(int64_t index, int64_t size) {
    return static_cast<uint64_t>(index) >= static_cast<uint64_t>(size);
  }
  // The plane of the image that a plane of the kernel reads.
  int64_t plane_read(const Band& band, int64_t kz) const {
    const Geometry<3>& g = problem_.geometry;
    return band.z * g.stride[0] + kz * g.dilation[0] - g.padding_low[0];
  }

  // The planes of a channel, or of a pair, that a band reads, with borders.
  void copy_planes(const Band& band, int64_t channel, T* copy) const {
    const Geometry<3>& g = problem_.geometry;
    const PlaneLayout<3>& image = problem_.image.layout;
    const From* const planes = reinterpret_cast<const From*>(problem_.image.data) + band.n * image.stride[0] +
                               band.group * image.stride[1] + channel * image.stride[2];
    const int64_t rows_read = band.rows + (g.kernel[1] - 1) * g.dilation[1];
    for (int64_t kz = 0; kz < g.kernel[0]; ++kz) {
      if (beyond(plane_read(band, kz), g.image[0])) continue;
      const From* const plane = planes + plane_read(band, kz) * image.axis_stride[0];
      T* to = std::fill_n(copy + kz * cut_.plane, cut_.front, T{});
      for (int64_t y = band.first_row - g.padding_low[1], end = y + rows_read; y < end; ++y, to += cut_.row) {
        if (beyond(y, g.image[1])) {
          std::fill_n(to, cut_.row, T{});
          continue;
        }
        const From* const from = plane + y * image.axis_stride[1];
        if constexpr (std::is_same_v<T, From>)
          std::fill(std::copy_n(from, g.image[2], to), to + cut_.row, T{});
        else
          terms_.pack.transpose({from, 1, image.stride[2], g.image[2], Terms::kHalves, cut_.row}, to, 0);
      }
    }
    std::fill(copy + g.kernel[0] * cut_.plane, copy + cut_.pitch, T{});
  }

  // A block of a sum is that of so many taps, whichever of them are left out because they read only border.
  int64_t list_runs(const Band& band, int64_t length, const Own& own) const {
    const Geometry<3>& g = problem_.geometry;
    const int64_t block_taps = taps_of_block<T>(length);
    int64_t runs = 0;
    for (int64_t tap = 0; tap < taps_; ++tap) {
      int64_t index[3];
      unravel<3>(tap, g.kernel, index);
      if (beyond(plane_read(band, index[0]), g.image[0])) continue;
      if (runs > 0 && tap / block_taps != own.run_taps[runs - 1] / block_taps) own.runs[runs - 1].ends_block = true;
      own.run_taps[runs] = tap;
      const int64_t column = cut_.front + index[2] * g.dilation[2] - g.padding_low[2];
      own.runs[runs] = {own.run_rows + runs * terms_.tiles.rows,
                        index[0] * cut_.plane + index[1] * g.dilation[1] * cut_.row + column, length, false};
      ++runs;
    }
    return runs;
  }

  // sums[row, position] (+)= weight[row, tap, channel] * copy[channel, tap and position] over a chunk of channels.
  void multiply(const Band& band, int64_t chunk, int64_t runs, const Own& own) const {
    const int64_t lanes = terms_.tiles.lanes, tile_rows = terms_.tiles.rows, row_tiles = ceil_div(rows_, tile_rows);
    const int64_t vectors = ceil_div((band.rows - 1) * cut_.row + problem_.geometry.positions[2], lanes);
    const int64_t panels = ceil_div(vectors, int64_t{terms_.tiles.vectors});
    const Element* const weights = lines_.data + band.group * lines_.group + chunk * cut_.chunk * Terms::kHalves;
    const Start start = chunk > 0 ? Start::sum : problem_.bias ? Start::row_bias : Start::zero;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t vector = vectors * panel / panels, lane = vector * lanes;
      const int64_t width = (vectors * (panel + 1) / panels - vector) * lanes;
      for (int64_t tile = 0; tile < row_tiles; ++tile) {
        // Tiles of nearly one height: low ones read their lanes for few products.
        const int64_t row = rows_ * tile / row_tiles, count = rows_ * (tile + 1) / row_tiles - row;
        for (int64_t j = 0; j < runs; ++j)
          for (int64_t i = 0; i < count; ++i)
            own.run_rows[j * tile_rows + i] =
                reinterpret_cast<const T*>(weights + (row + i) * lines_.row + weight_offsets_[own.run_taps[j]]);
        terms_.multiply(width, count,
                        {own.runs, runs, 0, own.copy + lane, 1, cut_.pitch, own.sums + row * cut_.lanes + lane,
                         cut_.lanes, start, problem_.bias ? bias_ + band.group * rows_ + row : nullptr});
      }
    }
  }

  void store(const Band& band, const Own& own) const {
    const PlaneLayout<3>& output = problem_.output.layout;
    From* const target = reinterpret_cast<From*>(problem_.output.data) + band.n * output.stride[0] +
                         band.group * output.stride[1] + band.z * output.axis_stride[0] +
                         band.first_row * output.axis_stride[1];
    for (int64_t row = 0; row < rows_; ++row)
      for (int64_t y = 0; y < band.rows; ++y)
        terms_.pack.store(own.sums + row * cut_.lanes + y * cut_.row,
                          target + row * output.stride[2] + y * output.axis_stride[1], output.axis_stride[2],
                          problem_.geometry.positions[2]);
  }

  const Terms terms_;
  const Correlation<3>& problem_;
  const PlanesPlan cut_;
  const int64_t rows_, taps_;
  const bool in_place_;  // taps of the weight are lines of channels, and read where they lie
  const int64_t line_;   // elements from one packed tap to the next
  WeightLines<Element> lines_{};
  // What all tasks read.
  Element* packed_ = nullptr;
  Sum* bias_ = nullptr;
  int64_t* weight_offsets_ = nullptr;
};

// What depends on the terms.
template <class Terms>
const char* decline_terms(const Terms& terms, const Correlation<3>& problem) {
  const int64_t channels = problem.channels();
  if (terms.tiles.depth != 1) return "tiles that multiply many terms at a time read no runs from planes";
  if (channels % Terms::kHalves != 0 || Terms::count(channels) < kLeastRunTerms)
    return "runs of fewer than 16 channels cost more than a gathered panel";
  if (reads_in_place<Terms>(problem.weight)) return nullptr;
  // Taps are packed as lines of channels from one stretch of memory.
  int64_t reach = 1;
  for (int axis = 0; axis < 3; ++axis)
    reach += std::abs((problem.geometry.kernel[axis] - 1) * problem.weight.layout.axis_stride[axis]);
  return reach == problem.geometry.tap_numel() ? nullptr : "taps of the weight are not neighbours in memory";
}

}  // namespace

const char* decline_planes(const CorrelateImage& problem) {
  const Geometry<3>& g = problem->geometry;
  if (problem->variants() > 1) return "outputs that share their columns are multiplied from a panel";
  if (g.kernel[1] == 1 || g.kernel[2] == 1) return "a plane that only one row of taps reads gains too little";
  if (g.stride[1] != 1 || g.stride[2] != 1) return "with a stride, taps do not see all positions at one distance";
  if (problem->image.layout.axis_stride[2] != 1) return "pixels of a row are not neighbours in memory";
  const char* reason = kNoTerms;
  with_terms(problem->image.dtype, [&](const auto& terms) { reason = decline_terms(terms, *problem); });
  return reason;
}

const char* plan_planes(const Correlation<3>& problem, const Call&, JobSlot& slot) {
  const char* reason = nullptr;
  with_terms(problem.image.dtype, [&](const auto& terms) {
    PlanesPlan cut;
    reason = find_plan(terms, problem, cut);
    if (reason == nullptr) slot.emplace<PlanesJob<std::decay_t<decltype(terms)>>>(terms, problem, cut);
  });
  return reason;
}

}  // namespace unfoldconv::cpu
