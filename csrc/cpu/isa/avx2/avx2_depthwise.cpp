#ifdef __x86_64__
#include "cpu/isa/avx2/avx2_target.h"
#include "cpu/kernels/depthwise_copy.inl.h"
#include "cpu/kernels/depthwise_weight_sums.inl.h"
#endif
