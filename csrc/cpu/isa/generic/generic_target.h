// What every file of this folder begins with: what the compiler may use, and vectors made of that.
#pragma once

#include "cpu/kernels/prelude.h"

#define UNFOLDCONV_ISA generic
#define UNFOLDCONV_VECTOR_BYTES 16
#include "cpu/kernels/simd.inl.h"
