// The kernels for avx2.
#ifdef __x86_64__
#include "cpu/kernels/prelude.h"

#pragma GCC target("avx2,fma,f16c")
#define UNFOLDCONV_ISA avx2
#define UNFOLDCONV_VECTOR_BYTES 32
#include "cpu/kernels/all.inl.h"
#endif
