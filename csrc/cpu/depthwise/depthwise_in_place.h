// The depthwise engine's small kernels over tensors with the channels innermost: nothing is gathered.
#pragma once

#include "cpu/depthwise/depthwise_blocks.h"
#include "problem/planes.h"
#include "runtime/place.h"

namespace unfoldconv::cpu {

// Whether these drivers take the problem; the others of the engine take all.
bool in_place(const Axis (&axes)[3], const Operand& image, const Operand& output);

// output = bias + the correlation that the axes describe.
void correlate_in_place(const Axis (&axes)[3], const int64_t (&kernel)[3], const Operand& image, int64_t batch,
                        const Blocks& blocks, const Tensor& weight, const Bias& bias, const Operand& output);

// The gradient of its weight, from that of the output.
void weight_grad_in_place(const Axis (&axes)[3], const int64_t (&kernel)[3], const Operand& image, const Operand& grad,
                          int64_t batch, const Blocks& blocks, Tensor& grad_weight);

}  // namespace unfoldconv::cpu
