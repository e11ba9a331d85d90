// The kernels for generic.
#include "cpu/kernels/prelude.h"

#define UNFOLDCONV_ISA generic
#define UNFOLDCONV_VECTOR_BYTES 16
#include "cpu/kernels/all.inl.h"
