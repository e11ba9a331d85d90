#include "weight_sums.h"

#include "../engine.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kShortRow = 8;  // positions; runs of a line that are shorter cost more than gathering patches

}  // namespace

template <int Rank>
bool weight_sums(const WeightSums<Rank>& any_rank) {
  // As for correlations, one instance of the engines serves every rank.
  WeightSums<3> problem{with_leading_axes<3>(any_rank.grad_output), with_leading_axes<3>(any_rank.image),
                        with_leading_axes<3>(any_rank.geometry), any_rank.grad_weight};
  merge_axes(problem.geometry, problem.image.layout, problem.grad_output.layout);
  if (may_use(Engine::channels) && weight_sums_of_channels(problem)) return true;
  if (!may_use(Engine::positions)) return false;
  return (problem.geometry.positions[2] >= kShortRow && weight_sums_of_rows(problem)) ||
         weight_sums_of_patches(problem);
}

#define UNFOLDCONV_INSTANTIATE(RANK) template bool weight_sums<RANK>(const WeightSums<RANK>&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
