// All functions of pack_kernels.h.
#include "cpu/kernels/pack_panel.inl.h"
// These need its loads of elements, in this order.
#include "cpu/kernels/pack_lines.inl.h"
#include "cpu/kernels/transpose.inl.h"

namespace unfoldconv::cpu::UNFOLDCONV_ISA {
namespace {

template <class T, class From>
constexpr PackKernels<T, From> pack_kernels_of() {
  return {pack_panel<T, From>, pack_rows<T, From>, transpose<T, From>, pack_line<T, From>,
          pack_lines<T, From>, pack_taps<T, From>, turn<T, From>,      store_line<T, From>};
}

}  // namespace

void add_packing(Kernels& kernels) {
  kernels.pack = {pack_kernels_of<float, float>(), pack_kernels_of<double, double>(),
                  pack_kernels_of<float, BFloat16>(), pack_kernels_of<float, Half>(),
                  pack_kernels_of<Pair, BFloat16>()};
}

}  // namespace unfoldconv::cpu::UNFOLDCONV_ISA
