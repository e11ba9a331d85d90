// The kernels that amx has instead of those of avx512.
//
// UNFOLDCONV_AMX_MODEL names a header with a model of the tile instructions in plain C++, for tests on processors
// without them.
#ifdef __x86_64__
#include "cpu/kernels/prelude.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#define UNFOLDCONV_ISA amx
#define UNFOLDCONV_VECTOR_BYTES 64
#include "cpu/kernels/simd.inl.h"
// These need the vectors of simd.inl.h, in this order.
#ifdef UNFOLDCONV_AMX_MODEL
#include UNFOLDCONV_AMX_MODEL
#else
#include "cpu/isa/amx_intrinsics.h"
#endif
#include "cpu/kernels/amx_tile.inl.h"

namespace unfoldconv::cpu::amx {

Tiles<Pair> pair_tiles() { return tiles(); }

}  // namespace unfoldconv::cpu::amx
#endif
