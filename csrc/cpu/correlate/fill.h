// A result that nothing is added to: its bias, or 0.
#pragma once

#include "problem/planes.h"

namespace unfoldconv::cpu {

// planes[n, g, m, p] = bias[g, m], or 0 without one, for all positions p of planes of these sizes.
void fill(const Planes<3>& planes, const int64_t (&sizes)[3], const char* bias);

}  // namespace unfoldconv::cpu
