#include "weight_sums.h"

#include "../engine.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kFewChannels = 12;  // fewer leave most lanes of a vector empty

}  // namespace

template <int Rank>
bool weight_sums(const WeightSums<Rank>& problem) {
  const bool forced = forced_engine() == Engine::channels;
  const bool channels_adjoin = problem.image.layout.stride[2] == 1 && (forced || problem.channels() >= kFewChannels);
  if (channels_adjoin && may_use(Engine::channels) && weight_sums_of_channels<Rank>(problem)) return true;
  return may_use(Engine::positions) && weight_sums_of_rows<Rank>(problem);
}

#define UNFOLDCONV_INSTANTIATE(RANK) template bool weight_sums<RANK>(const WeightSums<RANK>&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
