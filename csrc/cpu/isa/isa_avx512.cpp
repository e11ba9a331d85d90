// The kernels for avx512.
#ifdef __x86_64__
#include "cpu/kernels/prelude.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#define UNFOLDCONV_ISA avx512
#define UNFOLDCONV_VECTOR_BYTES 64
#include "cpu/kernels/all.inl.h"
#endif
