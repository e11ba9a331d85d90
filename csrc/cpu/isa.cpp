#include "isa.h"

#include <atomic>
#include <cstdlib>

#include "../scalar.h"
#include "kernels.h"

namespace unfoldconv::cpu {
namespace {

constexpr Isa kAll[] = {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

Isa parse(const std::string& name, const char* source) {
  for (const Isa isa : kAll) {
    if (name != name_of(isa)) continue;
    if (isa > best_isa())
      refuse(std::string(source) + " must be an instruction set that the processor has (" + name_of(best_isa()) +
             " or lower), but got " + name);
    return isa;
  }
  refuse(std::string(source) + " must be generic, avx2, avx512 or avx512_bf16, but got " + name);
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa = [] {
    const char* name = std::getenv("UNFOLDCONV_ISA");
    return name && *name ? parse(name, "UNFOLDCONV_ISA") : best_isa();
  }();
  return isa;
}

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::generic: return "generic";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::avx512_bf16: return "avx512_bf16";
  }
  return "";
}

Isa best_isa() {
#ifdef __x86_64__
  static const Isa best = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
      return Isa::generic;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!avx512) return Isa::avx2;
    return __builtin_cpu_supports("avx512bf16") ? Isa::avx512_bf16 : Isa::avx512;
  }();
  return best;
#else
  return Isa::generic;
#endif
}

Isa isa_in_use() { return current(); }

void set_isa(const std::string& name) { current() = parse(name, "isa"); }

const Kernels& kernels() {
#ifdef __x86_64__
  switch (isa_in_use()) {
    case Isa::generic: return generic::kernels;
    case Isa::avx2: return avx2::kernels;
    case Isa::avx512: return avx512::kernels;
    case Isa::avx512_bf16: {
      static const Kernels with_pairs = [] {
        Kernels kernels = avx512::kernels;
        kernels.tiles.bf16 = avx512_bf16::pair_tiles();
        return kernels;
      }();
      return with_pairs;
    }
  }
#endif
  return generic::kernels;
}

}  // namespace unfoldconv::cpu
