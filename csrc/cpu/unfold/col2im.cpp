// col2im on the CPU.
//
//   columns  [batch, channels * taps, positions], any strides
//   image    [batch, channels, *sizes], contiguous
//
// The image is cut into tiles, and each tile into its residues modulo the strides (windows.h). Of one residue every tap
// adds a rectangle of its row of columns to a rectangle of sums, which lies on the stack and is then written to the
// image: so strides and rounding cost once per element of the image and not once per tap.
//
// One task owns some tiles, and an element's taps are added in row-major order: deterministic for any thread count.
#include <algorithm>
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
constexpr int64_t kRunsTogether = 16;
constexpr int64_t kGathered = 256;  // elements of columns that are brought together at a time

// The type by whose addition T is added, and how many of it a T is.
template <class T>
struct PartOf {
  using type = T;
};
template <class T>
struct PartOf<Complex<T>> {
  using type = T;
};

// An integer as wide as T, for values that are only moved.
template <class T>
using Bits =
    std::conditional_t<sizeof(T) == 1, uint8_t,
                       std::conditional_t<sizeof(T) == 2, uint16_t,
                                          std::conditional_t<sizeof(T) == 4, uint32_t,
                                                             std::conditional_t<sizeof(T) == 8, uint64_t, Bytes16>>>>;

template <class T>
class Folder {
  using Total = Accumulator<T>;
  using Part = typename PartOf<T>::type;
  using PartSum = Accumulator<Part>;
  // The positions of a tap that read a tile, along one axis: `count` from `position`, into sums from `slot`.
  struct Rectangle {
    int64_t position, count, slot;
    bool meets(const WindowAxis& axis, int64_t first, int64_t length, int64_t offset) {
      position = std::max<int64_t>(0, first - offset);
      count = std::min(axis.positions, first + length - offset) - position;
      slot = position + offset - first;
      return count > 0;
    }
  };

  // The terms of a tile whose rows fit a vector, so that the sums of one can stay in a register: a segment for each
  // slice of each run. They are the same for every plane. Not usable if the rows do not fit, or the terms are too many.
  struct Plan {
    static constexpr int64_t kMostSegments = 64, kTerms = 128;
    Term terms[kTerms];
    int64_t end[kMostSegments];
    bool usable;
  };

  static constexpr int64_t kParts = sizeof(T) / sizeof(Part);
  static constexpr int64_t kGap =
      64 / sizeof(PartSum);  // between rows of sums: a vector that is added reaches no other
  // A sum as it is moved to the image: rounded, or as it is.
  using Moved = std::conditional_t<std::is_same_v<T, Total>, Bits<T>, Total>;
  using Target = std::conditional_t<std::is_same_v<T, Total>, Bits<T>, T>;

 public:
  Folder(const T* columns, int64_t planes, int64_t channels, const int64_t (&column_stride)[3],
         const Geometry<3>& geometry, T* image)
      : columns_(columns),
        planes_(planes),
        channels_(channels),
        stride_{column_stride[0], column_stride[1], column_stride[2]},
        axes_{{geometry, 0}, {geometry, 1}, {geometry, 2}},
        taps_(geometry.tap_numel()),
        positions_(geometry.position_numel()),
        image_(image),
        move_(move_kernel<Moved, Target>()),
        gather_(move_kernel<Bits<T>, Bits<T>>()),
        add_(add_kernel<Part>()),
        sum_(sum_kernel<Part>()),
        lanes_(kernels().patches.vector_bytes / static_cast<int64_t>(sizeof(PartSum))) {}

  void operator()() const {
    int64_t first[3], count[3], tile[3], tiles[3];  // quotients
    for (int axis = 0; axis < 3; ++axis) {
      first[axis] = axes_[axis].padding_low / axes_[axis].stride;
      count[axis] = ceil_div(axes_[axis].image + axes_[axis].padding_low, axes_[axis].stride) - first[axis];
    }
    choose_tile(count, tile);
    for (int axis = 0; axis < 3; ++axis) tiles[axis] = ceil_div(count[axis], tile[axis]);
    const int64_t tile_numel = Geometry<3>::product(tiles);
    const int64_t item_bytes = Geometry<3>::product(tile) * taps_ * sizeof(T);
    parallel_over(planes_ * tile_numel, item_bytes, [&](int64_t begin, int64_t end) {
      Plan plan;
      int64_t planned = -1;
      for (int64_t item = begin; item < end; ++item) {
        int64_t index[3], from[3], length[3];
        unravel<3>(item % tile_numel, tiles, index);
        for (int axis = 0; axis < 3; ++axis) {
          from[axis] = first[axis] + index[axis] * tile[axis];
          length[axis] = std::min(tile[axis], first[axis] + count[axis] - from[axis]);
        }
        if (std::exchange(planned, item % tile_numel) != item % tile_numel) make_plan(from, length, plan);
        fold_tile(item / tile_numel, from, length, plan);
      }
    });
  }

 private:
  // Residues of the last axis whose sums lie side by side, to be moved to the image together.
  int64_t runs_together() const {
    return axes_[2].dilation == 1 ? std::min<int64_t>(axes_[2].residues(), kRunsTogether) : 1;
  }

  // The largest tile whose sums fit, cut along the outer axes first.
  void choose_tile(const int64_t (&count)[3], int64_t (&tile)[3]) const {
    const int64_t room = kTileBytes / sizeof(Total) / runs_together();
    for (int axis = 2, others = 1; axis >= 0; --axis) {
      const int64_t most = std::max<int64_t>(1, (axis == 2 ? room - kGap : room / others));
      tile[axis] = ceil_div(count[axis], ceil_div(count[axis], most));
      others *= tile[axis] + (axis == 2 ? kGap : 0);
    }
  }

  // Writes what has the quotients [first, first + count) of a plane.
  void fold_tile(int64_t plane, const int64_t (&first)[3], const int64_t (&count)[3], const Plan& plan) const {
    const T* const columns = columns_ + plane / channels_ * stride_[0] + plane % channels_ * taps_ * stride_[1];
    T* const image = image_ + plane * axes_[0].image * axes_[1].image * axes_[2].image;
    bool all_residues = true;
    for (const WindowAxis& axis : axes_) all_residues &= axis.residues() == axis.stride;
    if (!all_residues) clear(first, count, image);
    alignas(64) unsigned char buffer[kTileBytes + kAddSlack * sizeof(Total)];
    Total* const sums = reinterpret_cast<Total*>(buffer);
    const int64_t run_numel = count[0] * count[1] * (count[2] + kGap);
    const bool summed = plan.usable && vectors_are_inside(plane);
    int64_t segment = 0;
    for_each_runs([&](const int64_t (&run)[3], int64_t runs) {
      if (!summed) std::memset(buffer, 0, runs * run_numel * sizeof(Total));
      for (int64_t i = 0; i < runs; ++i) {
        if (summed)
          sum_taps(columns, plan, segment, count, sums + i * run_numel);
        else
          add_taps(columns, {run[0], run[1], run[2] + i}, first, count, sums + i * run_numel);
      }
      write(run, runs, first, count, sums, image);
    });
  }

  // f(run, runs) for `runs` residues of the last axis from run[2] on and one of each other axis, for all of them.
  template <class F>
  void for_each_runs(const F& f) const {
    int64_t run[3];
    for (run[0] = 0; run[0] < axes_[0].residues(); ++run[0])
      for (run[1] = 0; run[1] < axes_[1].residues(); ++run[1])
        for (run[2] = 0; run[2] < axes_[2].residues(); run[2] += runs_together())
          f(run, std::min(runs_together(), axes_[2].residues() - run[2]));
  }

  // f(tap, along) for each tap of a run that meets the tile, in order.
  template <class F>
  void for_each_tap(const int64_t (&run)[3], const int64_t (&first)[3], const int64_t (&count)[3], const F& f) const {
    const TapsOfRun taps[3] = {axes_[0].taps_of(run[0]), axes_[1].taps_of(run[1]), axes_[2].taps_of(run[2])};
    Rectangle along[3];
    int64_t offset[3] = {taps[0].offset, taps[1].offset, taps[2].offset};
    for (int64_t i = taps[0].first; i < axes_[0].kernel; i += taps[0].step, offset[0] += taps[0].ahead) {
      if (!along[0].meets(axes_[0], first[0], count[0], offset[0])) continue;
      offset[1] = taps[1].offset;
      for (int64_t j = taps[1].first; j < axes_[1].kernel; j += taps[1].step, offset[1] += taps[1].ahead) {
        if (!along[1].meets(axes_[1], first[1], count[1], offset[1])) continue;
        offset[2] = taps[2].offset;
        for (int64_t k = taps[2].first; k < axes_[2].kernel; k += taps[2].step, offset[2] += taps[2].ahead)
          if (along[2].meets(axes_[2], first[2], count[2], offset[2]))
            f((i * axes_[1].kernel + j) * axes_[2].kernel + k, along);
      }
    }
  }

  void add_taps(const T* columns, const int64_t (&run)[3], const int64_t (&first)[3], const int64_t (&count)[3],
                Total* sums) const {
    const T* const end = columns + (taps_ - 1) * stride_[1] + (positions_ - 1) * stride_[2] + 1;
    for_each_tap(run, first, count, [&](int64_t tap, const Rectangle(&along)[3]) {
      add_tap(columns + tap * stride_[1], end, along, count, sums);
    });
  }

  void make_plan(const int64_t (&first)[3], const int64_t (&count)[3], Plan& plan) const {
    const int64_t segments = axes_[0].residues() * axes_[1].residues() * axes_[2].residues();
    plan.usable = stride_[2] == 1 && count[2] * kParts <= lanes_ && segments <= Plan::kMostSegments / count[0] &&
                  taps_ <= Plan::kTerms / count[0];
    if (!plan.usable) return;
    const int64_t pitch[2] = {axes_[1].positions * axes_[2].positions, axes_[2].positions};
    int64_t found = 0, segment = 0;
    for_each_runs([&](const int64_t (&run)[3], int64_t runs) {
      for (int64_t i = 0; i < runs; ++i)
        for (int64_t slice = 0; slice < count[0]; ++slice) {
          for_each_tap({run[0], run[1], run[2] + i}, first, count, [&](int64_t tap, const Rectangle(&along)[3]) {
            const auto& [x, y, z] = along;
            if (slice < x.slot || slice >= x.slot + x.count) return;
            const int64_t from = tap * stride_[1] + (x.position + slice - x.slot) * pitch[0] +
                                 (y.position - y.slot) * pitch[1] + z.position - z.slot;
            const auto narrow = [](int64_t number) { return static_cast<int32_t>(number); };
            plan.terms[found++] = {from * kParts, narrow(y.slot), narrow(y.slot + y.count), narrow(z.slot * kParts),
                                   narrow((z.slot + z.count) * kParts)};
          });
          plan.end[segment++] = found;
        }
    });
  }

  // Whether a vector that begins before what a plan adds of a plane, or ends after it, still lies in the columns.
  bool vectors_are_inside(int64_t plane) const {
    const int64_t before = plane / channels_ * stride_[0] + plane % channels_ * taps_ * stride_[1];
    const int64_t all = (planes_ / channels_ - 1) * stride_[0] + (channels_ - 1) * taps_ * stride_[1];
    return before * kParts >= lanes_ && (all - before) * kParts >= lanes_;
  }

  // add_taps by the plan, for the next run of it.
  void sum_taps(const T* columns, const Plan& plan, int64_t& segment, const int64_t (&count)[3], Total* sums) const {
    const int64_t row = (count[2] + kGap) * kParts;
    for (int64_t slice = 0; slice < count[0]; ++slice, ++segment) {
      const int64_t begin = segment == 0 ? 0 : plan.end[segment - 1];
      int64_t from = begin;
      do {
        const int64_t terms = std::min(kMostTerms, plan.end[segment] - from);
        sum_(parts(columns), plan.terms + from, terms, axes_[2].positions * kParts,
             parts(sums) + slice * count[1] * row, row, count[1], from == begin);
        from += terms;
      } while (from < plan.end[segment]);
    }
  }

  void add_tap(const T* columns, const T* end, const Rectangle (&along)[3], const int64_t (&tile)[3],
               Total* sums) const {
    const int64_t row = tile[2] + kGap;
    const int64_t pitch[2] = {axes_[1].positions * axes_[2].positions, axes_[2].positions};
    Total* const to = sums + (along[0].slot * tile[1] + along[1].slot) * row + along[2].slot;
    const T* const from =
        columns + (along[0].position * pitch[0] + along[1].position * pitch[1] + along[2].position) * stride_[2];
    if (stride_[2] == 1) {
      add_(parts(from), parts(end), parts(to),
           {{1, along[0].count, along[1].count, along[2].count * kParts},
            {0, pitch[0] * kParts, pitch[1] * kParts, 1},
            {0, tile[1] * row * kParts, row * kParts, 1}});
      return;
    }
    Bits<T> gathered[kGathered];
    for (int64_t i = 0; i < along[0].count; ++i)
      for (int64_t j = 0; j < along[1].count; ++j)
        for (int64_t k = 0; k < along[2].count; k += kGathered) {
          const int64_t n = std::min(kGathered, along[2].count - k);
          gather_(reinterpret_cast<const Bits<T>*>(from + (i * pitch[0] + j * pitch[1] + k) * stride_[2]), gathered,
                  {{1, 1, 1, n}, {0, 0, 0, stride_[2]}, {0, 0, 0, 1}});
          const T* const values = reinterpret_cast<const T*>(gathered);
          add_(parts(values), parts(values + n), parts(to + (i * tile[1] + j) * row + k),
               {{1, 1, 1, n * kParts}, {0, 0, 0, 1}, {0, 0, 0, 1}});
        }
  }

  // Moves the sums of `runs` residues of the last axis to the image.
  void write(const int64_t (&run)[3], int64_t runs, const int64_t (&first)[3], const int64_t (&count)[3], Total* sums,
             T* image) const {
    const int64_t row = count[2] + kGap;
    Block block{{1}, {count[0] * count[1] * row, count[1] * row, row, 1}, {1}};
    int64_t step = axes_[2].image;
    for (int axis = 1; axis >= 0; --axis) {
      const WindowAxis& window = axes_[axis];
      const int64_t index = first[axis] * window.stride + window.residue(run[axis]) - window.padding_low;
      const RunPart inside = window.inside(index, count[axis]);
      block.count[1 + axis] = inside.end - inside.begin;
      block.to_stride[1 + axis] = window.stride * step;
      sums += inside.begin * block.from_stride[1 + axis];
      image += inside.index * step;
      step *= window.image;
    }
    if (block.count[1] <= 0 || block.count[2] <= 0) return;
    const WindowAxis& window = axes_[2];
    block.to_stride[3] = window.stride;
    const int64_t first_index = first[2] * window.stride + window.residue(run[2]) - window.padding_low;
    const auto move_all = [&](auto move, auto* from, auto* to) {
      window.for_each_inside(first_index, 1, runs, count[2], [&](int64_t i, int64_t together, const RunPart& inside) {
        block.count[0] = together;
        block.count[3] = inside.end - inside.begin;
        move(from + i * block.from_stride[0] + inside.begin, to + inside.index, block);
      });
    };
    if constexpr (!std::is_same_v<T, Total>) {
      if (window.stride > 1) {  // rounded where they lie, so that only bytes are rearranged
        T* const rounded = reinterpret_cast<T*>(sums);
        Block rows{{runs, block.count[1], block.count[2], count[2]}, {}, {}};
        for (int axis = 0; axis < 4; ++axis) {
          rows.from_stride[axis] = block.from_stride[axis];
          if (axis < 3) block.from_stride[axis] *= sizeof(Total) / sizeof(T);
          rows.to_stride[axis] = block.from_stride[axis];
        }
        move_(sums, rounded, rows);
        return move_all(gather_, reinterpret_cast<const Bits<T>*>(rounded), reinterpret_cast<Bits<T>*>(image));
      }
    }
    move_all(move_, reinterpret_cast<const Moved*>(sums), reinterpret_cast<Target*>(image));
  }

  // Elements that no tap reads are 0.
  void clear(const int64_t (&first)[3], const int64_t (&count)[3], T* image) const {
    int64_t begin[3], end[3];
    for (int axis = 0; axis < 3; ++axis) {
      const WindowAxis& window = axes_[axis];
      begin[axis] = std::max<int64_t>(0, first[axis] * window.stride - window.padding_low);
      end[axis] = std::min(window.image, (first[axis] + count[axis]) * window.stride - window.padding_low);
    }
    if (begin[2] >= end[2]) return;
    if (begin[2] == 0 && end[2] == axes_[2].image) {  // whole rows are one
      begin[2] = begin[1] * axes_[2].image, end[2] = std::max(begin[1], end[1]) * axes_[2].image;
      begin[1] = 0, end[1] = 1;
    }
    for (int64_t i = begin[0]; i < end[0]; ++i)
      for (int64_t j = begin[1]; j < end[1]; ++j)
        std::memset(static_cast<void*>(image + (i * axes_[1].image + j) * axes_[2].image + begin[2]), 0,
                    (end[2] - begin[2]) * sizeof(T));
  }

  static const Part* parts(const T* values) { return reinterpret_cast<const Part*>(values); }
  template <class S = Total>
  static PartSum* parts(S* sums) {
    return reinterpret_cast<PartSum*>(sums);
  }

  const T* columns_;
  int64_t planes_, channels_, stride_[3];
  WindowAxis axes_[3];
  int64_t taps_, positions_;
  T* image_;
  Move<Moved, Target> move_;
  Move<Bits<T>, Bits<T>> gather_;
  Add<Part> add_;
  Sum<Part> sum_;
  int64_t lanes_;
};

}  // namespace

template <int Rank>
void col2im(const void* columns, ScalarType dtype, int64_t batch, int64_t channels, const int64_t (&column_stride)[3],
            const Geometry<Rank>& geometry, void* image) {
  if (batch * channels == 0 || geometry.image_numel() == 0) return;
  const Geometry<3> window = with_leading_axes<3>(geometry);
  dispatch_sum(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    Folder<T>(static_cast<const T*>(columns), batch * channels, channels, column_stride, window,
              static_cast<T*>(image))();
  });
}

#define UNFOLDCONV_INSTANTIATE(RANK)                                                                                 \
  template void col2im<RANK>(const void*, ScalarType, int64_t, int64_t, const int64_t (&)[3], const Geometry<RANK>&, \
                             void*);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
