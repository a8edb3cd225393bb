// Which vector instructions the CPU kernels use: found out once, at run time; one binary for all.
#pragma once

#include <string>

namespace innervoice {

// kPlain: C++ alone. kNeon: the dot product of ARMv8.2 in products with inputs of 8 bits; all others are
// plain. kAvx2: AVX2, FMA, F16C. kAvxVnni: AVX-VNNI in products with inputs of 8 bits, all others those of
// kAvx2. kAvx512: AVX-512 F, BW, DQ, VL, VNNI and BF16.
enum class Isa { kPlain, kNeon, kAvx2, kAvxVnni, kAvx512 };

// Whether this build has the kernels and this processor and its operating system run them.
bool is_available(Isa isa);

// The widest that is available.
Isa best_isa();

// "plain", "neon", "avx2", "avxvnni", "avx512".
const char* name_of(Isa isa);

// Throws std::invalid_argument for another name, and for one that is not available here.
Isa isa_named(const std::string& name);

}  // namespace innervoice
