// im2col on the CPU.
//
//   image    planes of any strides
//   columns  [planes, taps, range.count], rows row_stride apart
//
// The positions are cut into boxes. For each plane, what a box reads is first set out in a tile on the stack: padding
// as zeros, elements that one tap reads at neighbouring positions side by side (windows.h). Each row of columns is then
// a copy of a rectangle of the tile. So strides, padding, conversion and transposition cost once per element of the
// image and not once per tap, and what is written is one long stretch after another.
//
// One task owns some planes in some boxes, so no two write the same element.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "columns/columns.h"
#include "cpu/shared/windows.h"
#include "cpu/unfold/patch_moves.h"
#include "problem/scalar.h"
#include "runtime/parallel.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kTileBytes = 32 * 1024;  // on the stack, and at home in the first-level cache
// Bytes of channels_last that one tile takes: a cache line, but fewer where a tile would hold few positions.
constexpr int64_t kMostTogether = 64, kLeastTogether = 16;
constexpr int64_t kFewPositions = 256;
constexpr int64_t kFewChannels = 4;

struct Box {
  int64_t first[3], count[3];
};

// Cuts a range of positions into at most five boxes, in order: f(box, how many positions of the range come before it).
template <class F>
void for_each_box(PositionRange range, const int64_t (&positions)[3], const F& f) {
  for (int64_t done = 0; done < range.count;) {
    Box box;
    unravel<3>(range.first + done, positions, box.first);
    int64_t step = 1;  // positions of one index along `axis`
    int axis = 2;
    while (axis > 0 && box.first[axis] == 0 && step * positions[axis] <= range.count - done) step *= positions[axis--];
    for (int other = 0; other < 3; ++other) box.count[other] = other > axis ? positions[other] : 1;
    box.count[axis] = std::min(positions[axis] - box.first[axis], (range.count - done) / step);
    f(box, done);
    done += box.count[axis] * step;
  }
}

// How `count` neighbouring positions read along an axis: a run for each tap, or fewer that taps share.
struct Reads {
  int64_t runs, length;
  bool shared;

  Reads(const WindowAxis& axis, int64_t count) : runs(axis.kernel), length(count), shared(false) {
    const int64_t extra = (axis.kernel - 1) * axis.dilation / axis.stride;
    if (static_cast<double>(axis.residues()) * (static_cast<double>(count) + extra) <
        static_cast<double>(runs) * count) {
      runs = axis.residues();
      length = count + extra;
      shared = true;
    }
  }
  double slots() const { return static_cast<double>(runs) * length; }
  // Where in the image a run begins, for boxes that begin at `position`.
  int64_t first(const WindowAxis& axis, int64_t position, int64_t run) const {
    return position * axis.stride - axis.padding_low + (shared ? axis.residue(run) : run * axis.dilation);
  }
  // How much further the next run begins.
  int64_t step(const WindowAxis& axis) const { return shared && runs > 1 ? axis.residue(1) : axis.dilation; }
  int64_t slot(const WindowAxis& axis, int64_t tap) const {
    return shared ? axis.run_of(tap) * length + axis.offset_of(tap) : tap * length;
  }
};

template <class From, class To>
class Unfolder {
 public:
  Unfolder(const From* image, const PlaneLayout<3>& layout, const Geometry<3>& geometry, To* columns,
           int64_t row_stride)
      : image_(image),
        layout_(layout),
        axes_{{geometry, 0}, {geometry, 1}, {geometry, 2}},
        columns_(columns),
        row_stride_(row_stride),
        taps_(geometry.tap_numel()),
        move_(move_kernel<From, To>()),
        copy_rows_(kernels().patches.copy_rows) {
    // Where channels lie side by side, every cache line holds elements of many planes. A few fill no vector.
    if (layout.stride[2] == 1 && layout.axis_stride[2] != 1 && layout.count[2] >= kFewChannels)
      most_together_ = std::clamp<int64_t>(kMostTogether / sizeof(From), 1, layout.count[2]);
  }

  // Writes the columns of a box to columns + offset.
  void operator()(const Box& box, int64_t offset) const {
    int64_t tile[3], tiles[3];
    int64_t together = most_together_;
    bool fits = choose_tile(box, together, tile);
    const int64_t enough = std::min(kFewPositions, Geometry<3>::product(box.count));
    while (together > 1 && (!fits || (Geometry<3>::product(tile) < enough &&
                                      together * static_cast<int64_t>(sizeof(From)) > kLeastTogether))) {
      together /= 2;
      fits = choose_tile(box, together, tile);
    }
    for (int axis = 0; axis < 3; ++axis) tiles[axis] = ceil_div(box.count[axis], tile[axis]);
    const int64_t tile_numel = Geometry<3>::product(tiles);
    const int64_t blocks = ceil_div(layout_.count[2], together);
    const int64_t items = layout_.count[0] * layout_.count[1] * blocks * tile_numel;
    const int64_t item_bytes = Geometry<3>::product(tile) * taps_ * sizeof(To) * together;
    parallel_over(items, item_bytes, [&](int64_t begin, int64_t end) {
      alignas(64) unsigned char buffer[kTileBytes];
      Offsets offsets;
      int64_t current = -1;
      for (int64_t item = begin; item < end; ++item) {
        int64_t index[3];
        unravel<3>(item % tile_numel, tiles, index);
        Box part;
        for (int axis = 0; axis < 3; ++axis) {
          part.first[axis] = box.first[axis] + index[axis] * tile[axis];
          part.count[axis] = std::min(tile[axis], box.first[axis] + box.count[axis] - part.first[axis]);
        }
        int64_t target = offset;
        int64_t step = 1;
        for (int axis = 2; axis >= 0; --axis) {
          target += index[axis] * tile[axis] * step;
          step *= axes_[axis].positions;
        }
        const int64_t block = item / tile_numel;
        const int64_t channel = block % blocks * together;
        const int64_t plane = block / blocks * layout_.count[2] + channel;
        const int64_t planes = std::min(together, layout_.count[2] - channel);
        if (!fits) {
          direct(part, plane, planes, target);
          continue;
        }
        const Reads reads[3] = {{axes_[0], part.count[0]}, {axes_[1], part.count[1]}, {axes_[2], part.count[2]}};
        int64_t slots = 1;
        for (const Reads& read : reads) slots *= read.runs * read.length;
        To* const values = reinterpret_cast<To*>(buffer);
        if (std::exchange(current, item % tile_numel) != item % tile_numel) {
          // The padding is the same for every plane.
          if (reads_padding(part, reads)) std::memset(buffer, 0, slots * together * sizeof(To));
          if (!std::equal(part.count, part.count + 3, offsets.count)) {
            std::copy(part.count, part.count + 3, offsets.count);
            offsets.valid = false;
          }
        }
        set_out(part, reads, image_ + layout_.plane_offset(plane), planes, values);
        for (int64_t i = 0; i < planes; ++i) emit(part, reads, values + i * slots, plane + i, target, offsets);
      }
    });
  }

 private:
  // Where in the tile the taps find what they read; the same for every plane and for tiles of one size.
  struct Offsets {
    static constexpr int64_t kMost = 256;
    int64_t bytes[kMost], count[3] = {};
    bool valid = false;
  };

  // The largest tile that fits, cut along the outer axes first; false if not even one position does.
  bool choose_tile(const Box& box, int64_t together, int64_t (&tile)[3]) const {
    const double room = static_cast<double>(kTileBytes) / sizeof(To) / together;
    std::copy(box.count, box.count + 3, tile);
    for (int axis = 0; axis < 3; ++axis) {
      double others = 1;
      for (int other = 0; other < 3; ++other)
        if (other != axis) others *= Reads(axes_[other], tile[other]).slots();
      const auto fits = [&](int64_t count) { return others * Reads(axes_[axis], count).slots() <= room; };
      if (fits(tile[axis])) return true;
      int64_t most = 1, too_many = tile[axis];
      while (most + 1 < too_many) {
        const int64_t middle = most + (too_many - most) / 2;
        (fits(middle) ? most : too_many) = middle;
      }
      const bool enough = fits(most);
      tile[axis] = ceil_div(tile[axis], ceil_div(tile[axis], most));
      if (enough) return true;
    }
    std::copy(box.count, box.count + 3, tile);
    return false;
  }

  bool reads_padding(const Box& part, const Reads (&reads)[3]) const {
    for (int axis = 0; axis < 3; ++axis) {
      const WindowAxis& window = axes_[axis];
      const int64_t last = reads[axis].first(window, part.first[axis], reads[axis].runs - 1);
      if (reads[axis].first(window, part.first[axis], 0) < 0 ||
          window.inside(last, reads[axis].length).end < reads[axis].length)
        return true;
    }
    return false;
  }

  // Elements between two that lie `step` apart along an axis; 0 if the image holds no two such, whose step may be any
  // number.
  int64_t distance(int axis, int64_t step) const {
    return std::abs(step) < axes_[axis].image ? step * layout_.axis_stride[axis] : 0;
  }

  // Sets out what a box reads of some planes, each [runs * length] along the three axes. Along the last axis runs that
  // begin side by side are moved together, like planes that lie side by side.
  void set_out(const Box& part, const Reads (&reads)[3], const From* plane, int64_t planes, To* tile) const {
    const int64_t row = reads[2].runs * reads[2].length, slice = reads[1].runs * reads[1].length * row;
    const int64_t slots = reads[0].runs * reads[0].length * slice;
    const bool runs_together = planes == 1;
    int64_t run[3];
    for (run[0] = 0; run[0] < reads[0].runs; ++run[0])
      for (run[1] = 0; run[1] < reads[1].runs; ++run[1]) {
        Block block{{planes}, {layout_.stride[2]}, {slots, slice, row, 1}};
        int64_t offset = 0;
        To* to = tile;
        for (int axis = 0; axis < 2; ++axis) {
          const WindowAxis& window = axes_[axis];
          const RunPart inside =
              window.inside(reads[axis].first(window, part.first[axis], run[axis]), reads[axis].length);
          block.count[1 + axis] = inside.end - inside.begin;
          if (block.count[1 + axis] <= 0) continue;
          block.from_stride[1 + axis] = distance(axis, window.stride);
          offset += inside.index * layout_.axis_stride[axis];
          to += (run[axis] * reads[axis].length + inside.begin) * block.to_stride[1 + axis];
        }
        if (block.count[1] <= 0 || block.count[2] <= 0) continue;
        const WindowAxis& window = axes_[2];
        block.from_stride[3] = distance(2, window.stride);
        const int64_t step = reads[2].step(window);
        if (runs_together) block.from_stride[0] = distance(2, step), block.to_stride[0] = reads[2].length;
        for (run[2] = 0; run[2] < reads[2].runs; run[2] += runs_together ? reads[2].runs : 1)
          window.for_each_inside(reads[2].first(window, part.first[2], run[2]), step, runs_together ? reads[2].runs : 1,
                                 reads[2].length, [&](int64_t first, int64_t runs, const RunPart& inside) {
                                   if (runs_together) block.count[0] = runs;
                                   block.count[3] = inside.end - inside.begin;
                                   move_(plane + offset + inside.index * layout_.axis_stride[2],
                                         to + (run[2] + first) * reads[2].length + inside.begin, block);
                                 });
      }
  }

  // Copies a rectangle of the tile for each tap.
  void emit(const Box& part, const Reads (&reads)[3], const To* tile, int64_t plane, int64_t target,
            Offsets& offsets) const {
    const int64_t row = reads[2].runs * reads[2].length, slice = reads[1].runs * reads[1].length * row;
    constexpr int64_t size = sizeof(To);
    const Rows rows{part.count[2] * size,
                    {part.count[0], part.count[1]},
                    {slice * size, row * size},
                    {axes_[1].positions * axes_[2].positions * size, axes_[2].positions * size}};
    To* const to = columns_ + plane * taps_ * row_stride_ + target;
    int64_t index[3] = {}, listed = 0;
    for (int64_t tap = 0; tap < taps_; tap += listed) {
      listed = std::min(Offsets::kMost, taps_ - tap);
      if (!offsets.valid || taps_ > Offsets::kMost) {
        for (int64_t i = 0; i < listed; ++i) {
          offsets.bytes[i] = (reads[0].slot(axes_[0], index[0]) * slice + reads[1].slot(axes_[1], index[1]) * row +
                              reads[2].slot(axes_[2], index[2])) *
                             size;
          for (int axis = 2; axis >= 0 && ++index[axis] == axes_[axis].kernel; --axis) index[axis] = 0;
        }
        offsets.valid = true;
      }
      copy_rows_(reinterpret_cast<const char*>(tile), offsets.bytes, listed,
                 reinterpret_cast<char*>(to + tap * row_stride_), row_stride_ * size, rows);
    }
  }

  // Without a tile, for windows so wide that none fits: each row of columns is gathered from the image.
  void direct(const Box& part, int64_t plane, int64_t planes, int64_t target) const {
    int64_t tap[3];
    for (int64_t i = 0; i < planes * taps_; ++i) {
      unravel<3>(i % taps_, {axes_[0].kernel, axes_[1].kernel, axes_[2].kernel}, tap);
      To* const to = columns_ + (plane * taps_ + i) * row_stride_ + target;
      Block block{{1}, {0}, {0, axes_[1].positions * axes_[2].positions, axes_[2].positions, 1}};
      int64_t offset = layout_.plane_offset(plane + i / taps_);
      To* inside_to = to;
      for (int axis = 0; axis < 3; ++axis) {
        const WindowAxis& window = axes_[axis];
        const RunPart inside = window.inside(
            part.first[axis] * window.stride + tap[axis] * window.dilation - window.padding_low, part.count[axis]);
        block.count[1 + axis] = inside.end - inside.begin;
        if (block.count[1 + axis] <= 0) continue;
        block.from_stride[1 + axis] = distance(axis, window.stride);
        offset += inside.index * layout_.axis_stride[axis];
        inside_to += inside.begin * block.to_stride[1 + axis];
      }
      for (int64_t j = 0; j < part.count[0]; ++j)
        for (int64_t k = 0; k < part.count[1]; ++k)
          std::memset(static_cast<void*>(to + j * block.to_stride[1] + k * block.to_stride[2]), 0,
                      part.count[2] * sizeof(To));
      if (block.count[1] > 0 && block.count[2] > 0 && block.count[3] > 0) move_(image_ + offset, inside_to, block);
    }
  }

  const From* image_;
  const PlaneLayout<3>& layout_;
  WindowAxis axes_[3];
  To* columns_;
  int64_t row_stride_, taps_, most_together_ = 1;  // planes in a tile
  Move<From, To> move_;
  CopyRows copy_rows_;
};

// At a single position taps and positions may change places, so that a row of columns is long: positions of a window of
// one tap, whose stride is the dilation.
void swap_taps_and_positions(Geometry<3>& geometry, PositionRange& range, int64_t& row_stride) {
  int64_t position[3];
  unravel<3>(range.first, geometry.positions, position);
  for (int axis = 0; axis < 3; ++axis) {
    geometry.padding_low[axis] -= position[axis] * geometry.stride[axis];
    geometry.stride[axis] = geometry.dilation[axis];
    geometry.positions[axis] = geometry.kernel[axis];
    geometry.kernel[axis] = geometry.dilation[axis] = 1;
  }
  range = {0, geometry.position_numel()};
  row_stride *= range.count;
}

}  // namespace

template <int Rank>
void im2col(const void* image, ScalarType from, const PlaneLayout<Rank>& layout, const Geometry<Rank>& geometry,
            PositionRange range, void* columns, ScalarType to, int64_t row_stride) {
  if (layout.plane_numel() == 0 || range.count == 0) return;
  Geometry<3> window = with_leading_axes<3>(geometry);
  const PlaneLayout<3> planes = with_leading_axes<3>(layout);
  if (range.count == 1 && row_stride == 1) swap_taps_and_positions(window, range, row_stride);
  dispatch_gather(from, to, [&](auto from_type, auto to_type) {
    using From = typename decltype(from_type)::type;
    using To = typename decltype(to_type)::type;
    const Unfolder<From, To> unfold(static_cast<const From*>(image), planes, window, static_cast<To*>(columns),
                                    row_stride);
    for_each_box(range, window.positions, unfold);
  });
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                                  \
  template void im2col<RANK>(const void*, ScalarType, const PlaneLayout<RANK>&, const Geometry<RANK>&, PositionRange, \
                             void*, ScalarType, int64_t);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
