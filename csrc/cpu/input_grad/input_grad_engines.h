// The input gradient of few channels, by overlap-add of columns.
//
//   columns[o, (t, u, c)] = sum over output channels m of grad_output[o, m] * weight[m, c, t, u]
//   grad_input[i, x, c]   = bias[c] + sum over o, t with o * stride + t * dilation - padding = i, and over q, u with
//                           q * stride + u * dilation - padding = x, of columns[(o, q), (t, u, c)]
//
// u being the tap along the last axis. All phases (phases.h) share one product, of whose rows or lanes the few channels
// of all taps are enough to fill a tile, and grad_output is read once. The columns of a row of grad_output stay in
// cache until each row of grad_input that they belong to is summed. A task owns some rows of grad_input, and computes
// the columns that it needs itself. Of a kernel with three axes, columns of one tap of the first are computed at a
// time.
#pragma once

#include "runtime/engine.h"

namespace unfoldconv::cpu::input_grad {

// For contiguous channels.
const char* decline_channels(const OneImage<InputGrad<3>>& problem);
const char* plan_channels(const InputGrad<3>& problem, const Call& call, JobSlot& slot);

// For contiguous positions.
const char* decline_positions(const OneImage<InputGrad<3>>& problem);
const char* plan_positions(const InputGrad<3>& problem, const Call& call, JobSlot& slot);

}  // namespace unfoldconv::cpu::input_grad
