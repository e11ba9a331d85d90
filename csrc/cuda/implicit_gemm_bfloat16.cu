// The correlations of implicit_gemm.cuh in bfloat16, on tensor cores with sums in float.
#include "implicit_gemm.cuh"

namespace unfoldconv::cuda {

void correlate_bfloat16(void* stream, const GemmCorrelation& problem) {
  if (gemm_tiles(problem).rows == WideTile::kN)
    launch_correlation<BFloat16, false, WideTile>(stream, problem);
  else
    launch_correlation<BFloat16, false, NarrowTile>(stream, problem);
}

}  // namespace unfoldconv::cuda
