// The kernels for avx512_bf16: avx512 and its products of bfloat16.
#ifdef __x86_64__
#include "instance_headers.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")
#define UNFOLDCONV_ISA avx512_bf16
#define UNFOLDCONV_VECTOR_BYTES 64
#define UNFOLDCONV_BF16_PRODUCTS
#include "instance.h"
#endif
