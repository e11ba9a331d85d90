// Correlations, and the input gradient as one for each phase of the stride (phases.h).
#pragma once

#include "runtime/engine.h"

namespace unfoldconv {

// Runs one by the first engine that takes it.
void correlate(const Call& call, const Correlation<3>& problem);

// What no engine computes as a whole.
void correlate_phases(const Call& call, const InputGrad<3>& whole);

}  // namespace unfoldconv
