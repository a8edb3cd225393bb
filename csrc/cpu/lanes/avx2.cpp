// Products of weights in lanes, compiled for one set of instructions.
#include "cpu/lanes/bytes_avx2.h"
#include "cpu/lanes/products.h"

namespace innervoice {

const LaneKernels& avx2_lane_kernels() { return kLanesTable; }

}  // namespace innervoice
