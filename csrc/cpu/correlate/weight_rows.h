// A weight as the positions engine reads it: each row of it as lines of terms.
#pragma once

#include "cpu/shared/positions.h"
#include "cpu/shared/terms.h"

namespace unfoldconv::cpu {

constexpr int64_t kPackedRows = 32;

// Terms that make a run worth its set-up, and its panel worth being gathered for each tap by itself.
constexpr int64_t kRunTerms = 48;

// Terms of each tap that are gathered at a time, so that rows of the image stay in the first-level cache.
constexpr int64_t kGatherTerms = 16;

// Whether the terms of a tap, which are its channels, are a line where they lie: a sum is then a run for each tap.
template <class Terms, int Rank>
bool taps_are_lines(const Planes<Rank>& weight) {
  if (!std::is_same_v<typename Terms::T, typename Terms::From> && Terms::kHalves == 1) return false;
  const int64_t channels = weight.layout.count[2];
  return weight.layout.stride[2] == 1 && channels % Terms::kHalves == 0 && Terms::count(channels) >= kRunTerms;
}

// Whether all terms of a row are a line where they lie, channels first and then taps.
template <class Terms, int Rank>
bool rows_are_lines(const Planes<Rank>& weight, const int64_t (&kernel)[Rank]) {
  if (!std::is_same_v<typename Terms::T, typename Terms::From> && Terms::kHalves == 1) return false;
  const int64_t taps = Geometry<Rank>::product(kernel), channels = weight.layout.count[2];
  return is_line<Rank>(weight.layout, kernel) && (channels == 1 || weight.layout.stride[2] == taps) &&
         channels * taps % Terms::kHalves == 0;
}

// Bytes from one packed line to the next, for lines of so many: an odd number of cache lines, so that neighbours do not
// compete for the same sets of a cache.
inline int64_t line_pitch(int64_t bytes) { return (ceil_div(bytes, kAlignment) | 1) * kAlignment; }

// The same in terms, for the lines of pack_rows; pack.taps writes beyond a line.
template <class T>
int64_t row_pitch(int64_t terms) {
  const int64_t size = sizeof(T);
  return line_pitch(terms * size + kLinesSlack) / size;
}

// The weight as [groups, variants, rows, pitch], all terms of a row in a line. A task packs a few rows at a time,
// because neighbouring rows of one channel may be neighbours in memory when neighbouring channels are pages apart.
template <class Terms, int Rank>
void pack_rows(const Terms& terms, const Correlation<Rank>& problem, int64_t pitch, const int64_t* offsets,
               typename Terms::T* packed) {
  using T = typename Terms::T;
  using From = typename Terms::From;
  const auto& layout = problem.weight.layout;
  const int64_t variants = problem.variants(), rows = layout.count[1], channels = layout.count[2];
  const int64_t taps = problem.geometry.tap_numel();
  const int64_t blocks = ceil_div(rows, kPackedRows);
  parallel_over(layout.count[0] * variants * blocks, kPackedRows * pitch * sizeof(T), [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block % blocks * kPackedRows, count = std::min(kPackedRows, rows - first);
      const Planes<Rank>& weight = problem.weight_of(block / blocks % variants);
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

}  // namespace unfoldconv::cpu
