#ifdef __x86_64__
#include "cpu/isa/avx512/avx512_target.h"
#include "cpu/kernels/strips.inl.h"
#endif
