// What the files of an instruction set define: each adds its family of kernels to a table.
//
// A set is a folder beside this file, and a family one file in it: <set>_target.h, which says what the compiler may
// use, and then bodies out of cpu/kernels. So an edit of a body compiles its family again and no other, and no file
// takes a compiler long. These functions may use the instructions of their set: they are only called where the
// processor has it.
#pragma once

#include "cpu/kernels/kernels.h"

namespace unfoldconv::cpu {

using AddKernels = void(Kernels& kernels);

// Lists of declarators, and of arguments. Vectors of 16 bytes are for processors that are slow anyway: there the
// general kernels are enough.
#define UNFOLDCONV_GENERIC_FAMILIES                                                             \
  add_tiles, add_strips, add_packing, add_patches, add_depthwise_copy, add_depthwise_correlate, \
      add_depthwise_weight_sums
#define UNFOLDCONV_FAMILIES \
  UNFOLDCONV_GENERIC_FAMILIES, add_depthwise_in_place, add_grouped_correlate, add_grouped_weight_sums

namespace generic {
AddKernels UNFOLDCONV_GENERIC_FAMILIES;
}
namespace avx2 {
AddKernels UNFOLDCONV_FAMILIES;
}
namespace avx512 {
AddKernels UNFOLDCONV_FAMILIES;
}
// Beside the kernels of avx512.
namespace avx512_bf16 {
AddKernels add_pairs;
}
// In place of some of avx512_bf16.
namespace amx {
AddKernels add_pair_tiles;
}

}  // namespace unfoldconv::cpu
