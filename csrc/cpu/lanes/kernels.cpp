#include "cpu/lanes/kernels.h"

#include <stdexcept>
#include <string>

#include "cpu/lanes/memory.h"

namespace innervoice {

std::int64_t lane_floats(const Weight& w, std::int64_t M) { return LaneMemory(w, M).floats(); }

const LaneKernels& lane_kernels_of(Isa isa) {
  if (!is_available(isa))
    throw std::invalid_argument(std::string("isa ") + name_of(isa) + " is not available here");
  switch (isa) {
#if defined(INNERVOICE_NEON)
    case Isa::kNeon: return neon_lane_kernels();
#endif
#if defined(INNERVOICE_AVX2)
    case Isa::kAvx2: return avx2_lane_kernels();
#endif
#if defined(INNERVOICE_AVXVNNI)
    case Isa::kAvxVnni: return avxvnni_lane_kernels();
#endif
#if defined(INNERVOICE_AVX512)
    case Isa::kAvx512: return avx512_lane_kernels();
#endif
    default: return plain_lane_kernels();
  }
}

}  // namespace innervoice
