#ifdef __x86_64__
#include "cpu/isa/avx512/avx512_target.h"
#include "cpu/kernels/grouped_correlate.inl.h"
#endif
