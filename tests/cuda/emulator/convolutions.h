// The convolutions for Python, computed as for CUDA tensors, by the emulator, on tensors of the CPU.
#pragma once

#include <pybind11/pybind11.h>

namespace unfoldconv {

void define_convolutions(pybind11::module_& module);

}  // namespace unfoldconv
