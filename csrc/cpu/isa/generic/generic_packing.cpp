#include "cpu/isa/generic/generic_target.h"
#include "cpu/kernels/packing.inl.h"
