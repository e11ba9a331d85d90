// The engine "stem": convolution on CUDA of one to four channels and one group, by kernels of its own (stem_launch.h).
#pragma once

#include "runtime/engine.h"

namespace unfoldconv {

const char* decline_stem(const OneImage<Correlation<3>>& problem);
const char* decline_stem(const OneImage<WeightGrad<3>>& problem);

const char* plan_stem(const Correlation<3>& problem, const Call& call, JobSlot& slot);
const char* plan_stem(const WeightGrad<3>& problem, const Call& call, JobSlot& slot);

}  // namespace unfoldconv
