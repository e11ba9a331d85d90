// The kernels that avx512_bf16 has beside those of avx512.
#ifdef __x86_64__
#include "cpu/isa/avx512_bf16/avx512_bf16_target.h"
#include "cpu/kernels/strip_tile.inl.h"
#include "cpu/kernels/tile.inl.h"

namespace unfoldconv::cpu::avx512_bf16 {

void add_pairs(Kernels& kernels) {
  kernels.tiles.bf16 = tiles<Pair>();
  kernels.tiles.bf16_strips = strip_tiles<Pair, BFloat16>();
}

}  // namespace unfoldconv::cpu::avx512_bf16
#endif
