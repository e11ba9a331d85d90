// The correlations of implicit_gemm.cuh in float32: by FFMA, or where the caller allows it as tf32 on tensor cores.
#include "implicit_gemm.cuh"

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

}  // namespace unfoldconv::cuda
