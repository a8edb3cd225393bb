// Products of weights in lanes, compiled for NEON with its dot product.
#include "cpu/lanes/bytes_neon.h"
#include "cpu/lanes/products.h"

namespace innervoice {

const LaneKernels& neon_lane_kernels() { return kLanesTable; }

}  // namespace innervoice
