#include "innervoice/isa.h"

#if defined(INNERVOICE_AVXVNNI)
#include <cpuid.h>
#endif

#if defined(INNERVOICE_NEON) && defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include <stdexcept>

namespace innervoice {
namespace {

constexpr Isa kAll[] = {Isa::kPlain, Isa::kNeon, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512};

#if defined(INNERVOICE_NEON)
bool has_neon() {
#if defined(__linux__) && defined(__aarch64__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#else
  return true;  // emulated, or a Mac's
#endif
}
#endif

#if defined(INNERVOICE_AVX2)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#if defined(INNERVOICE_AVXVNNI)
bool has_avxvnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // the second leaf 7, which older compilers have no name for
  return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}
#endif

#if defined(INNERVOICE_AVX512) && defined(INNERVOICE_SIMDE)
// Slower than any other: only for who asks by name.
constexpr bool kAvx512IsFast = false;
bool has_avx512() { return has_avx2(); }
#elif defined(INNERVOICE_AVX512)
constexpr bool kAvx512IsFast = true;
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("f16c");
}
#else
constexpr bool kAvx512IsFast = false;
#endif

}  // namespace

bool is_available(Isa isa) {
  switch (isa) {
#if defined(INNERVOICE_NEON)
    case Isa::kNeon: return has_neon();
#endif
#if defined(INNERVOICE_AVX2)
    case Isa::kAvx2: return has_avx2();
#endif
#if defined(INNERVOICE_AVXVNNI)
    case Isa::kAvxVnni: return has_avxvnni();
#endif
#if defined(INNERVOICE_AVX512)
    case Isa::kAvx512: return has_avx512();
#endif
    case Isa::kPlain: return true;
    default: return false;
  }
}

Isa best_isa() {
  static const Isa best = [] {
    Isa found = Isa::kPlain;
    for (const Isa isa : kAll) {
      if (is_available(isa) && (isa != Isa::kAvx512 || kAvx512IsFast)) found = isa;
    }
    return found;
  }();
  return best;
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kNeon: return "neon";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvxVnni: return "avxvnni";
    case Isa::kAvx512: return "avx512";
    default: return "plain";
  }
}

Isa isa_named(const std::string& name) {
  for (const Isa isa : kAll) {
    if (name != name_of(isa)) continue;
    if (!is_available(isa)) {
      throw std::invalid_argument("isa " + name +
                                  " is not available here: this processor or build has none; the best is " +
                                  name_of(best_isa()));
    }
    return isa;
  }
  throw std::invalid_argument("isa '" + name + "' is unknown: use plain, neon, avx2, avxvnni or avx512");
}

}  // namespace innervoice
