// Planes of a problem as the kernels for few channels take them.
#pragma once

#include "cuda/depthwise/depthwise_launch.h"
#include "problem/planes.h"

namespace unfoldconv {

inline cuda::DirectOperand operand_of(const Planes<3>& planes) { return {planes.data, planes.layout}; }

}  // namespace unfoldconv
