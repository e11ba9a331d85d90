// The inner loops that are compiled once for each instruction set, as the engines call them.
//
// Everything that an instance needs beyond plain C++ is in simd.inl.h; isa_*.cpp hold one instance each. Nothing here
// but pointers to functions: which ones are called is decided at run time.
#pragma once

#include <cstdint>

#include "cpu/kernels/depthwise_kernels.h"
#include "cpu/kernels/pack_kernels.h"
#include "cpu/kernels/patch_kernels.h"
#include "cpu/kernels/tile_kernels.h"

namespace unfoldconv::cpu {

struct Kernels {
  TileKernels tiles;
  AllPackKernels pack;
  DepthwiseKernels depthwise;
  PatchKernels patches;
};

// Those of isa_in_use().
const Kernels& kernels();

namespace generic {
extern const Kernels kernels;
}
#ifdef __x86_64__
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
Tiles<Pair> pair_tiles();
StripTiles<Pair, BFloat16> pair_strips();
}  // namespace avx512_bf16
namespace amx {
Tiles<Pair> pair_tiles();
}
#endif

}  // namespace unfoldconv::cpu
