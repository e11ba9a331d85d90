#include "cpu/input_grad/input_grad_engines.h"

#include "cpu/kernels/tile_kernels.h"
#include "runtime/engine.h"

namespace unfoldconv::cpu {

template <int Rank>
bool fold_input_grad(const InputGrad<Rank>& any_rank) {
  // One instance of the engines serves every rank.
  const InputGrad<3> problem = with_leading_axes<3>(any_rank);
  if (problem.grad_input.layout.count[1] > 1 || problem.grad_output.layout.count[2] < 2) return false;
  if (problem.grad_input.layout.plane_numel() * problem.geometry.image_numel() == 0) return false;
  if (problem.grad_input.layout.count[2] > kDotColumns) return false;
  // Windows that do not overlap leave nothing to add up.
  if (problem.geometry.kernel[2] <= problem.geometry.stride[2]) return false;
  if (may_use(Engine::channels) && fold_channels(problem)) return true;
  return may_use(Engine::positions) && fold_planes(problem);
}

#define UNFOLDCONV_INSTANTIATE(RANK) template bool fold_input_grad<RANK>(const InputGrad<RANK>&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
