#include "innervoice/isa.h"

#include <stdexcept>

namespace innervoice {
namespace {

constexpr Isa kAll[] = {Isa::kPlain, Isa::kAvx2, Isa::kAvx512};

#if defined(INNERVOICE_AVX2)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
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
#if defined(INNERVOICE_AVX2)
    case Isa::kAvx2: return has_avx2();
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
    case Isa::kAvx2: return "avx2";
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
  throw std::invalid_argument("isa '" + name + "' is unknown: use plain, avx2 or avx512");
}

}  // namespace innervoice
