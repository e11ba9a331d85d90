// Which instruction set the CPU kernels use, chosen once a process.
#pragma once

#include <string>

namespace unfoldconv::cpu {

// The name of the best set that the processor has and this library was built for, or of the one that the environment
// variable UNFOLDCONV_ISA says.
const char* isa_in_use();

// Makes every later call use this set, as tests do to run them all. Refuses one that the processor or the build lacks.
void set_isa(const std::string& name);

}  // namespace unfoldconv::cpu
