// The correlations of implicit_gemm.cuh in float16, on tensor cores with sums in float.
#include "implicit_gemm.cuh"

namespace unfoldconv::cuda {

void correlate_half(void* stream, const GemmCorrelation& problem) {
  if (gemm_tiles(problem).rows == WideTile::kN)
    launch_correlation<Half, false, WideTile>(stream, problem);
  else
    launch_correlation<Half, false, NarrowTile>(stream, problem);
}

}  // namespace unfoldconv::cuda
