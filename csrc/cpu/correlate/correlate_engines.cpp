#include "cpu/correlate/correlate_engines.h"

#include "runtime/engine.h"

namespace unfoldconv::cpu {

template <int Rank>
bool correlate(const Correlation<Rank>& any_rank) {
  // One instance of the engines serves every rank: what an axis costs is paid for a panel, not for an element.
  Correlation<3> problem = with_leading_axes<3>(any_rank);
  merge_axes(problem.geometry, problem.image.layout, problem.outputs[0].layout);
  if (may_use(Engine::channels) && correlate_strips(problem)) return true;
  if (may_use(Engine::positions) && correlate_lines(problem)) return true;
  const bool input_adjoins = problem.image.layout.stride[2] == 1 || problem.channels() == 1;
  const bool output_adjoins = problem.outputs[0].layout.stride[2] == 1 || problem.rows() == 1;
  const bool wanted = input_adjoins && (problem.channels() > 1 || output_adjoins);
  if (wanted && may_use(Engine::positions) && few_positions(problem) && correlate_positions(problem)) return true;
  if (wanted && may_use(Engine::channels) && correlate_channels(problem)) return true;
  if (may_use(Engine::positions) && correlate_planes(problem)) return true;
  if (may_use(Engine::positions) && correlate_turned(problem)) return true;
  return may_use(Engine::positions) && correlate_positions(problem);
}

#define UNFOLDCONV_INSTANTIATE(RANK) template bool correlate<RANK>(const Correlation<RANK>&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
