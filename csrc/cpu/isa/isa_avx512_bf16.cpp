// The kernels that avx512_bf16 has instead of those of avx512.
#ifdef __x86_64__
#include "cpu/kernels/prelude.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")
#define UNFOLDCONV_ISA avx512_bf16
#define UNFOLDCONV_VECTOR_BYTES 64
#define UNFOLDCONV_BF16_PRODUCTS
#include "cpu/kernels/simd.inl.h"
// Needs the vectors of simd.inl.h.
#include "cpu/kernels/tile.inl.h"
// Needs its products.
#include "cpu/kernels/strip_tile.inl.h"

namespace unfoldconv::cpu::avx512_bf16 {

Tiles<Pair> pair_tiles() { return tiles<Pair>(); }

StripTiles<Pair, BFloat16> pair_strips() { return strip_tiles<Pair, BFloat16>(); }

}  // namespace unfoldconv::cpu::avx512_bf16
#endif
