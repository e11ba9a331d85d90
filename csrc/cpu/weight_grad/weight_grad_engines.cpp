#include "cpu/weight_grad/weight_grad_engines.h"

#include "runtime/engine.h"

namespace unfoldconv::cpu {
namespace {

constexpr int64_t kShortRow = 8;  // positions; runs of a line that are shorter cost more than gathering patches

constexpr int64_t kWholeRows = 16;  // of which vectors of every instruction set are full

}  // namespace

template <int Rank>
bool weight_sums(const WeightSums<Rank>& any_rank) {
  // As for correlations, one instance of the engines serves every rank.
  WeightSums<3> problem = with_leading_axes<3>(any_rank);
  merge_axes(problem.geometry, problem.image.layout, problem.grad_output.layout);
  const bool long_rows = problem.geometry.positions[2] >= kShortRow;
  // With a single tap an element serves only panels of the other operand, whichever of the two engines lays it out. The
  // one of rows lays out long rows of the image and reads grad_output where it lies.
  const bool by_rows = problem.geometry.tap_numel() == 1 && problem.geometry.stride[2] == 1 &&
                       problem.grad_output.layout.stride[2] == 1 && problem.rows() % kWholeRows == 0;
  if (by_rows && long_rows && may_use(Engine::positions) && weight_sums_of_rows(problem)) return true;
  if (may_use(Engine::channels) && weight_sums_of_channels(problem)) return true;
  if (!may_use(Engine::positions)) return false;
  return (long_rows && weight_sums_of_rows(problem)) || weight_sums_of_patches(problem);
}

#define UNFOLDCONV_INSTANTIATE(RANK) template bool weight_sums<RANK>(const WeightSums<RANK>&);
UNFOLDCONV_INSTANTIATE(1)
UNFOLDCONV_INSTANTIATE(2)
UNFOLDCONV_INSTANTIATE(3)

}  // namespace unfoldconv::cpu
