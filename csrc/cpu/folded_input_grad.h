// The input gradient of few channels, by folding columns.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "../planes.h"

namespace unfoldconv::cpu {

// What an input gradient is made of. `bias`: one number per channel, or null.
template <int Rank>
struct InputGrad {
  Planes<Rank> grad_output, grad_input;  // (batch, group, channel of the group)
  Planes<Rank> weight;                   // (group, input channel, output channel)
  Geometry<Rank> geometry;
  const char* bias;
  Tensor like;  // says where memory comes from
};

// Computes it if it suits this engine, else returns false, having done nothing.
template <int Rank>
bool fold_input_grad(const InputGrad<Rank>& problem);

}  // namespace unfoldconv::cpu
