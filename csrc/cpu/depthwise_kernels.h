// The inner loops of the depthwise engine, for one instruction set.
#pragma once

namespace unfoldconv::cpu {

struct DepthwiseKernels {};

}  // namespace unfoldconv::cpu
