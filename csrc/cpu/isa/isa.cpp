#include "cpu/isa/isa.h"

#include <atomic>
#include <cstdlib>
#ifdef __x86_64__
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu/isa/families.h"
#include "problem/scalar.h"

// A build may leave sets out, with the files of their folders: UNFOLDCONV_HAS_AVX2=0, ... The generic set is always
// there.
#ifdef __x86_64__
#ifndef UNFOLDCONV_HAS_AVX2
#define UNFOLDCONV_HAS_AVX2 1
#endif
#ifndef UNFOLDCONV_HAS_AVX512
#define UNFOLDCONV_HAS_AVX512 1
#endif
#ifndef UNFOLDCONV_HAS_AVX512_BF16
#define UNFOLDCONV_HAS_AVX512_BF16 UNFOLDCONV_HAS_AVX512
#endif
#ifndef UNFOLDCONV_HAS_AMX
#define UNFOLDCONV_HAS_AMX UNFOLDCONV_HAS_AVX512_BF16
#endif
#if UNFOLDCONV_HAS_AVX512_BF16 > UNFOLDCONV_HAS_AVX512 || UNFOLDCONV_HAS_AMX > UNFOLDCONV_HAS_AVX512_BF16
#error "amx needs the kernels of avx512_bf16, and avx512_bf16 those of avx512"
#endif
#endif

namespace unfoldconv::cpu {
namespace {

struct Set {
  const char* name;
  bool (*processor_has)() = nullptr;      // null where the build lacks it
  const Kernels& (*kernels)() = nullptr;  // made by the first call
};

template <class... Add>
Kernels with(Kernels kernels, Add... add) {
  (add(kernels), ...);
  return kernels;
}

const Kernels& generic_kernels() {
  using namespace generic;
  static const Kernels kernels = with({}, UNFOLDCONV_GENERIC_FAMILIES);
  return kernels;
}
constexpr Set generic_set = {"generic", [] { return true; }, generic_kernels};

#if UNFOLDCONV_HAS_AVX2
const Kernels& avx2_kernels() {
  using namespace avx2;
  static const Kernels kernels = with({}, UNFOLDCONV_FAMILIES);
  return kernels;
}
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
constexpr Set avx2_set = {"avx2", has_avx2, avx2_kernels};
#else
constexpr Set avx2_set = {"avx2"};
#endif

#if UNFOLDCONV_HAS_AVX512
const Kernels& avx512_kernels() {
  using namespace avx512;
  static const Kernels kernels = with({}, UNFOLDCONV_FAMILIES);
  return kernels;
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
constexpr Set avx512_set = {"avx512", has_avx512, avx512_kernels};
#else
constexpr Set avx512_set = {"avx512"};
#endif

#if UNFOLDCONV_HAS_AVX512_BF16
const Kernels& avx512_bf16_kernels() {
  static const Kernels kernels = with(avx512_kernels(), avx512_bf16::add_pairs);
  return kernels;
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
constexpr Set avx512_bf16_set = {"avx512_bf16", has_avx512_bf16, avx512_bf16_kernels};
#else
constexpr Set avx512_bf16_set = {"avx512_bf16"};
#endif

#if UNFOLDCONV_HAS_AMX
const Kernels& amx_kernels() {
  // Those of avx512_bf16 are not a matter of course where tests model the tiles.
  static const Kernels kernels =
      with(has_avx512_bf16() ? avx512_bf16_kernels() : avx512_kernels(), amx::add_pair_tiles);
  return kernels;
}

// Whether this process may use the tiles of AMX for bfloat16.
bool has_amx() {
#if defined(UNFOLDCONV_AMX_MODEL)
  return has_avx512();
#elif defined(__linux__) && defined(SYS_arch_prctl)
  constexpr unsigned leaf = 7, bf16 = 1u << 22, tiles = 1u << 24;  // cpuid: bits of edx
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(leaf, 0, &eax, &ebx, &ecx, &edx) || !(edx & bf16) || !(edx & tiles) || !has_avx512_bf16())
    return false;
  // A process has to ask for the registers. Refused where the kernel does not know them, or a thread's stack for
  // signals has no room for them.
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
constexpr Set amx_set = {"amx", has_amx, amx_kernels};
#else
constexpr Set amx_set = {"amx"};
#endif

// In ascending order: a processor that has one has those before it.
constexpr Set kSets[] = {generic_set, avx2_set, avx512_set, avx512_bf16_set, amx_set};

bool is_built(const Set& set) { return set.kernels; }

// The best that the processor has and this library was built for.
const Set& best() {
  static const Set* const best = [] {
#ifdef __x86_64__
    __builtin_cpu_init();
#endif
    const Set* last = &generic_set;
    for (const Set& set : kSets)
      if (is_built(set) && set.processor_has()) last = &set;
    return last;
  }();
  return *best;
}

// The names of these sets, as "a, b or c".
template <class Is>
std::string names(const Is& is_one) {
  std::string all, last;
  for (const Set& set : kSets) {
    if (!is_one(set)) continue;
    if (!last.empty()) all += (all.empty() ? "" : ", ") + last;
    last = set.name;
  }
  return all.empty() ? last : all + " or " + last;
}

const Set& parse(const std::string& name, const std::string& source) {
  for (const Set& set : kSets) {
    if (name != set.name) continue;
    if (!is_built(set))
      refuse(source + " must be an instruction set that this library was built for (" + names(is_built) +
             "), but got " + name);
    if (!set.processor_has())
      refuse(source + " must be an instruction set that the processor has (" + best().name + " or lower), but got " +
             name);
    return set;
  }
  refuse(source + " must be " + names([](const Set&) { return true; }) + ", but got " + name);
}

std::atomic<const Set*>& current() {
  static std::atomic<const Set*> set = [] {
    const char* name = std::getenv("UNFOLDCONV_ISA");
    return name && *name ? &parse(name, "UNFOLDCONV_ISA") : &best();
  }();
  return set;
}

}  // namespace

const char* isa_in_use() { return current().load()->name; }

void set_isa(const std::string& name) { current() = &parse(name, "isa"); }

const Kernels& kernels() { return current().load()->kernels(); }

}  // namespace unfoldconv::cpu
