// The ops `build_info`, what this library was built with as "name=value;name=value", and `set_isa`.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/isa.h"

namespace unfoldconv {
namespace {

// The instruction set that the compiler was allowed to use everywhere.
constexpr const char* baseline() {
#if defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#elif defined(__x86_64__)
  return "x86-64";
#elif defined(__aarch64__)
  return "aarch64";
#else
  return "unknown";
#endif
}

std::string build_info() {
  return std::string(UNFOLDCONV_BUILD_INFO) + ";isa=" + cpu::name_of(cpu::isa_in_use()) + ";baseline=" + baseline();
}

void set_isa(std::string isa) { cpu::set_isa(isa); }

}  // namespace
}  // namespace unfoldconv

STABLE_TORCH_LIBRARY_FRAGMENT(UNFOLDCONV_NAMESPACE, library) {
  library.def("build_info() -> str");
  library.def("set_isa(str isa) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("build_info", TORCH_BOX(&unfoldconv::build_info));
  library.impl("set_isa", TORCH_BOX(&unfoldconv::set_isa));
}
