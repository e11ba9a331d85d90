#include "correlation.h"

namespace unfoldconv::cpu {

template <int Rank>
bool correlate(const Correlation<Rank>& problem) {
  return correlate_positions<Rank>(problem);
}

#define UNFOLDCONV_INSTANTIATE(RANK) template bool correlate<RANK>(const Correlation<RANK>&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
