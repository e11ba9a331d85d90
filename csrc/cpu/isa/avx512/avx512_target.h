// What every file of this folder begins with: what the compiler may use, and vectors made of that.
#pragma once

#include <immintrin.h>

#include "cpu/kernels/prelude.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#define UNFOLDCONV_ISA avx512
#define UNFOLDCONV_VECTOR_BYTES 64
#include "cpu/kernels/simd.inl.h"
