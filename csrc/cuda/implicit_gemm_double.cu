// The correlations of implicit_gemm.cuh in float64: on tensor cores where they know it, else by FMA.
#include "implicit_gemm.cuh"

namespace unfoldconv::cuda {

void correlate_double(void* stream, const GemmCorrelation& problem) {
  launch_correlation<double, false, DoubleTile>(stream, problem);
}

}  // namespace unfoldconv::cuda
