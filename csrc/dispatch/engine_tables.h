// Every engine there is: the tables of cpu_engines.cpp and cuda_engines.cpp. Nothing else decides which one computes
// what.
#pragma once

#include <span>

#include "runtime/engine.h"

namespace unfoldconv {

// The tables, in the order in which engines are asked. The last engine of the first and the last table takes
// everything; where no engine computes an input gradient as a whole, its phases are correlations.
struct Engines {
  std::span<const CorrelateEngine> correlate;
  std::span<const InputGradEngine> input_grad;
  std::span<const WeightGradEngine> weight_grad;
};

const Engines& cpu_engines();   // cpu_engines.cpp
const Engines& cuda_engines();  // cuda_engines.cpp

inline const Engines& engines_of([[maybe_unused]] const Place& place) {
#ifdef UNFOLDCONV_WITH_CUDA
  if (place.cuda) return cuda_engines();
#endif
  return cpu_engines();
}

}  // namespace unfoldconv
