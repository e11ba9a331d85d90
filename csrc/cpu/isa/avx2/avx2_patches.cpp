#ifdef __x86_64__
#include "cpu/isa/avx2/avx2_target.h"
#include "cpu/kernels/patch.inl.h"
#endif
