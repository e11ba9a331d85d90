#include "cpu/isa/isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu/kernels/kernels.h"
#include "problem/scalar.h"

namespace unfoldconv::cpu {
namespace {

constexpr Isa kAll[] = {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx};

Isa parse(const std::string& name, const char* source) {
  for (const Isa isa : kAll) {
    if (name != name_of(isa)) continue;
    if (isa > best_isa())
      refuse(std::string(source) + " must be an instruction set that the processor has (" + name_of(best_isa()) +
             " or lower), but got " + name);
    return isa;
  }
  refuse(std::string(source) + " must be generic, avx2, avx512, avx512_bf16 or amx, but got " + name);
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
    case Isa::amx: return "amx";
  }
  return "";
}

#ifdef __x86_64__
namespace {

// Whether this process may use the tiles of AMX for bfloat16, and the processor has avx512_bf16 as well.
bool has_amx() {
#if defined(UNFOLDCONV_AMX_MODEL)
  return true;
#elif defined(__linux__) && defined(SYS_arch_prctl)
  constexpr unsigned leaf = 7, bf16 = 1u << 22, tiles = 1u << 24;  // cpuid: bits of edx
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(leaf, 0, &eax, &ebx, &ecx, &edx) || !(edx & bf16) || !(edx & tiles) ||
      !__builtin_cpu_supports("avx512bf16"))
    return false;
  // A process has to ask for the registers. Refused where the kernel does not know them, or a thread's stack for
  // signals has no room for them.
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

Isa best_isa() {
#ifdef __x86_64__
  static const Isa best = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
      return Isa::generic;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!avx512) return Isa::avx2;
    if (has_amx()) return Isa::amx;
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
        kernels.tiles.bf16_strips = avx512_bf16::pair_strips();
        return kernels;
      }();
      return with_pairs;
    }
    case Isa::amx: {
      static const Kernels with_tiles = [] {
        Kernels kernels = avx512::kernels;
        kernels.tiles.bf16 = amx::pair_tiles();
        if (__builtin_cpu_supports("avx512bf16")) {  // not a matter of course where tests model the tiles
          std::copy_n(avx512_bf16::pair_tiles().dots, kDotColumns, kernels.tiles.bf16.dots);
          kernels.tiles.bf16_strips = avx512_bf16::pair_strips();
        }
        return kernels;
      }();
      return with_tiles;
    }
  }
#endif
  return generic::kernels;
}

}  // namespace unfoldconv::cpu
