#include "cpu/isa/generic/generic_target.h"
#include "cpu/kernels/depthwise_correlate.inl.h"
