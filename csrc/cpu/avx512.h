// The AVX-512 intrinsics: the compiler's, or SIMDe's on a processor without them (CMake's INNERVOICE_SIMDE).
#pragma once

#if defined(INNERVOICE_SIMDE)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#else
#include <immintrin.h>
#endif
