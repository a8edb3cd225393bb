// Products of weights in lanes, compiled for one set of instructions.
#include "cpu/lanes/bytes_avx512.h"
#include "cpu/lanes/products.h"

namespace innervoice {

const LaneKernels& avx512_lane_kernels() { return kLanesTable; }

}  // namespace innervoice
