// The micro-kernel of strips for floats and doubles, and for 16-bit floats that are multiplied as floats.
#include "cpu/kernels/strip_tile.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {

void add_strips(Kernels& kernels) {
  kernels.tiles.f32_strips = strip_tiles<float, float>();
  kernels.tiles.f64_strips = strip_tiles<double, double>();
  kernels.tiles.bf16_as_f32_strips = strip_tiles<float, BFloat16>();
  kernels.tiles.f16_as_f32_strips = strip_tiles<float, Half>();
}

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
