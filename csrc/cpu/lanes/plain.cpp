// Products of weights in lanes, compiled for one set of instructions.
#include "cpu/lanes/bytes_plain.h"
#include "cpu/lanes/products.h"

namespace innervoice {

const LaneKernels& plain_lane_kernels() { return kLanesTable; }

}  // namespace innervoice
