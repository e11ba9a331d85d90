// Correlations and gradients of weights in float32: by FFMA, or where the caller allows it as tf32 on tensor cores.
#include "cuda/implicit_gemm/implicit_gemm.cuh"
#include "cuda/implicit_gemm/weight_gemm.cuh"

namespace unfoldconv::cuda {

void correlate_float(void* stream, const GemmCorrelation& problem) {
  const bool wide = gemm_tiles(problem).rows == WideTile::kN;
  if (problem.tf32 && wide)
    launch_correlation<float, true, WideTile>(stream, problem);
  else if (problem.tf32)
    launch_correlation<float, true, NarrowTile>(stream, problem);
  else if (wide)
    launch_correlation<float, false, WideTile>(stream, problem);
  else
    launch_correlation<float, false, NarrowTile>(stream, problem);
}

void sum_weights_float(void* stream, const GemmWeightSums& problem) {
  if (problem.tf32)
    launch_weight_sums<float, true, NarrowWeightTile, WideWeightTile>(stream, problem);
  else
    launch_weight_sums<float, false, NarrowWeightTile>(stream, problem);
}

}  // namespace unfoldconv::cuda
