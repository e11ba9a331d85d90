// How a sum whose terms are taps first and then channels is cut, whichever engine adds it up: so two engines that add
// the same terms in the same chunks and blocks give the same bits, and which of them is taken may depend on the batch.
#pragma once

#include "cpu/kernels/tile_kernels.h"
#include "runtime/rows.h"
#include "runtime/tasks.h"

namespace unfoldconv::cpu {

constexpr int64_t kChunkTerms = 1024;  // of a panel that stays in the second-level cache

// A chunk is some taps, or a part of the channels of one. Channels are counted in terms.
struct TapChunks {
  int64_t tap_terms;  // of a tap
  int64_t taps, channels, per_tap, count;

  TapChunks() = default;
  // depth: Tiles::depth.
  TapChunks(int64_t all_taps, int64_t tap_terms, int64_t most_terms, int64_t depth) : tap_terms(tap_terms) {
    channels = std::min(tap_terms, most_terms);
    per_tap = channels ? ceil_div(tap_terms, channels) : 1;
    channels = std::min(channels, round_up(ceil_div(tap_terms, per_tap), depth));
    taps = per_tap > 1 ? 1 : std::max<int64_t>(1, most_terms / std::max<int64_t>(1, tap_terms));
    taps = std::min(taps, std::max<int64_t>(1, all_taps));
    count = std::max<int64_t>(1, ceil_div(all_taps, taps)) * per_tap;
  }

  int64_t most_terms() const { return per_tap > 1 ? channels : taps * tap_terms; }
  int64_t first_tap(int64_t chunk) const { return chunk / per_tap * taps; }
  int64_t first_channel(int64_t chunk) const { return chunk % per_tap * channels; }
  // Of a sum, counted over taps and channels.
  int64_t first_term(int64_t chunk) const { return first_tap(chunk) * tap_terms + first_channel(chunk); }
};

// A block of a sum is that of so many taps, whichever of them are left out for reading only padding.
template <class T>
int64_t taps_of_block(int64_t tap_terms) {
  return std::max<int64_t>(1, kBlockTerms<T> / tap_terms);
}

}  // namespace unfoldconv::cpu
