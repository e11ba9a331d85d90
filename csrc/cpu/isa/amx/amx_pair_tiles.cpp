// The kernels that amx has instead of those of avx512_bf16.
//
// UNFOLDCONV_AMX_MODEL names a header with a model of the tile instructions in plain C++, for tests on processors
// without them.
#ifdef __x86_64__
#include "cpu/isa/amx/amx_target.h"
// These need its vectors, in this order.
#ifdef UNFOLDCONV_AMX_MODEL
#include UNFOLDCONV_AMX_MODEL
#else
#include "cpu/isa/amx/amx_intrinsics.h"
#endif
#include "cpu/kernels/amx_tile.inl.h"

namespace unfoldconv::cpu::amx {

void add_pair_tiles(Kernels& kernels) {
  Tiles<Pair> result = tiles();
  __builtin_memcpy(result.dots, kernels.tiles.bf16.dots, sizeof result.dots);  // amx has none of its own
  kernels.tiles.bf16 = result;
}

}  // namespace unfoldconv::cpu::amx
#endif
