// The micro-kernels of tiles and lines for floats and doubles, and what adds windows up.
#include "cpu/kernels/line_tile.inl.h"
#include "cpu/kernels/overlap_add.inl.h"
#include "cpu/kernels/tile.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {

void add_tiles(Kernels& kernels) {
  kernels.tiles.f32 = tiles<float>();
  kernels.tiles.f64 = tiles<double>();
  kernels.tiles.f32_lines = line_tiles<float>();
  kernels.tiles.f64_lines = line_tiles<double>();
  kernels.tiles.f32_fold = fold<float>;
  kernels.tiles.f64_fold = fold<double>;
}

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
