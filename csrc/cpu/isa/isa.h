// Which instruction set the CPU kernels use, chosen once a process.
#pragma once

#include <string>

namespace unfoldconv::cpu {

// In ascending order: each can do what those before it can.
enum class Isa { generic, avx2, avx512, avx512_bf16, amx };

const char* name_of(Isa isa);

// The best that the processor has and this library was built for.
Isa best_isa();

// best_isa(), or what the environment variable UNFOLDCONV_ISA says.
Isa isa_in_use();

// Makes every later call use `isa`, as tests do to run them all. Refuses one that the processor lacks.
void set_isa(const std::string& name);

}  // namespace unfoldconv::cpu
