// Correlations and gradients of weights in float64: on tensor cores where they know it, else by FMA.
#include "cuda/implicit_gemm/implicit_gemm.cuh"
#include "cuda/implicit_gemm/weight_gemm.cuh"

namespace unfoldconv::cuda {

void correlate_double(void* stream, const GemmCorrelation& problem) {
  launch_correlation<double, false, DoubleTile>(stream, problem);
}

void sum_weights_double(void* stream, const GemmWeightSums& problem) {
  launch_weight_sums<double, false, DoubleWeightTile>(stream, problem);
}

}  // namespace unfoldconv::cuda
