// The inner loops that are compiled once for each instruction set, as the engines call them.
//
// Everything that an instance needs beyond plain C++ is in simd.inl.h; cpu/isa/families.h says how the bodies of
// these loops, *.inl.h, are compiled. Nothing here but pointers to functions: which ones are called is decided at run
// time.
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

}  // namespace unfoldconv::cpu
