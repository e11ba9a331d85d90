#include "cpu/isa/generic/generic_target.h"
#include "cpu/kernels/depthwise_copy.inl.h"
#include "cpu/kernels/depthwise_weight_sums.inl.h"
