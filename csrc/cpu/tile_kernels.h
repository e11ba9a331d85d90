// The inner loops of the panel engine (panels.h), for one instruction set.
#pragma once

namespace unfoldconv::cpu {

struct TileKernels {};

}  // namespace unfoldconv::cpu
