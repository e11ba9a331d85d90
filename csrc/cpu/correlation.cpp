#include "correlation.h"

#include "../engine.h"

namespace unfoldconv::cpu {

template <int Rank>
bool correlate(const Correlation<Rank>& problem) {
  const auto& image = problem.image.layout;
  const bool channels_adjoin = image.stride[2] == 1 && problem.channels() > 1;
  if (channels_adjoin && may_use(Engine::channels) && correlate_channels<Rank>(problem)) return true;
  return may_use(Engine::positions) && correlate_positions<Rank>(problem);
}

#define UNFOLDCONV_INSTANTIATE(RANK) template bool correlate<RANK>(const Correlation<RANK>&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
