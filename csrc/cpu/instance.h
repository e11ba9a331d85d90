// One instance of every kernel, in the namespace and for the vectors that isa_*.cpp chose.
#include "simd.h"
// The order does not matter beyond this.
#include "grouped_instance.h"
#include "pack_instance.h"
#include "patch_instance.h"
#include "tile_instance.h"
// These need its products.
#include "fold_instance.h"
#include "line_tile_instance.h"
#include "strip_tile_instance.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {

extern const Kernels kernels;
const Kernels kernels = {{tiles<float>(),
                          tiles<double>(),
                          {},
                          line_tiles<float>(),
                          line_tiles<double>(),
                          strip_tiles<float, float>(),
                          strip_tiles<double, double>(),
                          strip_tiles<float, BFloat16>(),
                          strip_tiles<float, Half>(),
                          {},
                          fold<float>,
                          fold<double>},
                         pack_kernels(),
                         depthwise_kernels(),
                         patch_kernels()};

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
