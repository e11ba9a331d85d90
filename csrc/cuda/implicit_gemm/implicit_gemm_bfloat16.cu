// Correlations and gradients of weights in bfloat16, on tensor cores with sums in float.
#include "cuda/implicit_gemm/implicit_gemm.cuh"
#include "cuda/implicit_gemm/weight_gemm.cuh"

namespace unfoldconv::cuda {

void correlate_bfloat16(void* stream, const GemmCorrelation& problem) {
  if (gemm_tiles(problem).rows == WideTile::kN)
    launch_correlation<BFloat16, false, WideTile>(stream, problem);
  else
    launch_correlation<BFloat16, false, NarrowTile>(stream, problem);
}

void sum_weights_bfloat16(void* stream, const GemmWeightSums& problem) {
  launch_weight_sums<BFloat16, false, NarrowWeightTile, WideWeightTile>(stream, problem);
}

}  // namespace unfoldconv::cuda
