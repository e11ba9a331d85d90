// What every file of this folder begins with: what the compiler may use, and vectors made of that.
#pragma once

#include <immintrin.h>

#include "cpu/kernels/prelude.h"

#pragma GCC target("avx2,fma,f16c")
#define UNFOLDCONV_ISA avx2
#define UNFOLDCONV_VECTOR_BYTES 32
#include "cpu/kernels/simd.inl.h"
