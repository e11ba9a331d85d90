// Correlations and gradients of weights in float16, on tensor cores with sums in float.
#include "cuda/implicit_gemm/implicit_gemm.cuh"
#include "cuda/implicit_gemm/weight_gemm.cuh"

namespace unfoldconv::cuda {

void correlate_half(void* stream, const GemmCorrelation& problem) {
  if (gemm_tiles(problem).rows == WideTile::kN)
    launch_correlation<Half, false, WideTile>(stream, problem);
  else
    launch_correlation<Half, false, NarrowTile>(stream, problem);
}

void sum_weights_half(void* stream, const GemmWeightSums& problem) {
  launch_weight_sums<Half, false, NarrowWeightTile, WideWeightTile>(stream, problem);
}

}  // namespace unfoldconv::cuda
