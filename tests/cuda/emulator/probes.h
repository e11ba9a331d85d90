// The kernels of probes.cu and instruction_probes.cu, by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace unfoldconv::cuda {

using Kernel = void (*)(const int*, int*);

const std::map<std::string, Kernel>& instruction_kernels();

// Runs a kernel on a grid of any shape, past launch.cuh.
void probe(const std::string& name, const std::vector<unsigned>& grid, const std::vector<unsigned>& block,
           size_t shared_bytes, const int* in, int* out);

// Runs a kernel by launch() of launch.cuh.
void probe_launch(const std::string& name, int64_t blocks, const int* in, int* out);

// Divides each dividend by the divisor with the Divider of index.cuh, in 32 or 64 bits.
void probe_divider(int bits, int count, const int64_t* dividends, int64_t divisor, int64_t* quotients,
                   int64_t* remainders);

// The limits of launch.cuh.
void set_limits(double index, int64_t blocks, int64_t busy, int64_t segment);

}  // namespace unfoldconv::cuda
