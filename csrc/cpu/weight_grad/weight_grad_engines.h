// Weight gradients (problem/weight_grad.h) on the CPU without a matrix of columns, on the micro-kernel of
// tile_kernels.h.
//
// The terms of a sum are positions. Two engines, as for correlations (correlate_engines.h): one broadcasts the image
// and has the rows of the output in the lanes; the other has channels in the lanes and reads the image where it lies;
// it wants channels_last, channels that fill the lanes, and terms of the dtype in memory. The first has two ways: rows
// of the image as lines (image_lines.h), and patches gathered one by one where rows of the output are short. Lines have
// two rows in the table, because those of pointwise windows come before the channels.
#pragma once

#include "runtime/engine.h"

namespace unfoldconv::cpu::weight_grad {

const char* decline_pointwise(const OneImage<WeightGrad<3>>& problem);
const char* decline_lines(const OneImage<WeightGrad<3>>& problem);
const char* plan_lines(const WeightGrad<3>& problem, const Call& call, JobSlot& slot);

const char* decline_channels(const OneImage<WeightGrad<3>>& problem);
const char* plan_channels(const WeightGrad<3>& problem, const Call& call, JobSlot& slot);

const char* decline_patches(const OneImage<WeightGrad<3>>& problem);
const char* plan_patches(const WeightGrad<3>& problem, const Call& call, JobSlot& slot);

}  // namespace unfoldconv::cpu::weight_grad
