// The ops `build_info`, what this library was built with as "name=value;name=value", `set_isa`, and `float32_as_tf32`,
// which tells tests what the CUDA engines do with float32.
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/isa/isa.h"
#include "generated/registration.h"
#include "runtime/current_place.h"

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
  return std::string(UNFOLDCONV_BUILD_INFO) + ";isa=" + cpu::isa_in_use() + ";baseline=" + baseline();
}

void set_isa(std::string isa) { cpu::set_isa(isa); }

bool as_tf32() {
#ifdef UNFOLDCONV_WITH_CUDA
  return float32_as_tf32();
#else
  return false;
#endif
}

}  // namespace
}  // namespace unfoldconv

STABLE_TORCH_LIBRARY_FRAGMENT(UNFOLDCONV_NAMESPACE, library) {
  library.def("build_info() -> str");
  library.def("set_isa(str isa) -> ()");
  library.def("float32_as_tf32() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(UNFOLDCONV_NAMESPACE, CompositeExplicitAutograd, library) {
  library.impl("build_info", TORCH_BOX(&unfoldconv::build_info));
  library.impl("set_isa", TORCH_BOX(&unfoldconv::set_isa));
  library.impl("float32_as_tf32", TORCH_BOX(&unfoldconv::as_tf32));
}
