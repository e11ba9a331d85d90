// The kernels that avx512_bf16 has instead of those of avx512.
#ifdef __x86_64__
#include "instance_headers.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")
#define UNFOLDCONV_ISA avx512_bf16
#define UNFOLDCONV_VECTOR_BYTES 64
#define UNFOLDCONV_BF16_PRODUCTS
#include "simd.h"
// Needs the vectors of simd.h.
#include "tile_instance.h"
// Needs its products.
#include "strip_tile_instance.h"

namespace unfoldconv::cpu::avx512_bf16 {

Tiles<Pair> pair_tiles() { return tiles<Pair>(); }

StripTiles<Pair, BFloat16> pair_strips() { return strip_tiles<Pair, BFloat16>(); }

}  // namespace unfoldconv::cpu::avx512_bf16
#endif
