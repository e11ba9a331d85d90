// The direct engine: convolution on CUDA with one or a few channels per group, by kernels of its own
// (depthwise_launch.h). With one channel per group it goes by the name of "depthwise", with more by that of "grouped",
// which tell the same kernels apart.
#pragma once

#include "runtime/engine.h"

namespace unfoldconv {

const char* decline_direct_depthwise(const OneImage<Correlation<3>>& problem);
const char* decline_direct_depthwise(const OneImage<InputGrad<3>>& problem);
const char* decline_direct_depthwise(const OneImage<WeightGrad<3>>& problem);

const char* decline_direct_grouped(const OneImage<Correlation<3>>& problem);
const char* decline_direct_grouped(const OneImage<InputGrad<3>>& problem);
const char* decline_direct_grouped(const OneImage<WeightGrad<3>>& problem);

const char* plan_direct(const Correlation<3>& problem, const Call& call, JobSlot& slot);
const char* plan_direct(const InputGrad<3>& problem, const Call& call, JobSlot& slot);
const char* plan_direct(const WeightGrad<3>& problem, const Call& call, JobSlot& slot);

}  // namespace unfoldconv
