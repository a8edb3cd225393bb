// Which vector instructions the CPU kernels use: found out once, at run time; one binary for all.
#pragma once

#include <string>

namespace innervoice {

// kPlain: C++ alone. kAvx2: AVX2, FMA, F16C. kAvx512: AVX-512 F, BW, DQ, VL, VNNI and BF16.
enum class Isa { kPlain, kAvx2, kAvx512 };

// Whether this build has the kernels and this processor and its operating system run them.
bool is_available(Isa isa);

// The widest that is available.
Isa best_isa();

// "plain", "avx2", "avx512".
const char* name_of(Isa isa);

// Throws std::invalid_argument for another name, and for one that is not available here.
Isa isa_named(const std::string& name);

}  // namespace innervoice
