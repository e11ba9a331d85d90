// One instance of every kernel, in the namespace and for the vectors that isa_*.cpp chose.
#include "cpu/kernels/simd.inl.h"
// The order does not matter beyond this.
#include "cpu/kernels/grouped.inl.h"
#include "cpu/kernels/pack_panel.inl.h"
#include "cpu/kernels/patch.inl.h"
#include "cpu/kernels/tile.inl.h"
// These need its products.
#include "cpu/kernels/line_tile.inl.h"
#include "cpu/kernels/overlap_add.inl.h"
#include "cpu/kernels/strip_tile.inl.h"

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
