// Products of weights in lanes, compiled for AVX2 with AVX-VNNI.
#include "cpu/lanes/bytes_avxvnni.h"
#include "cpu/lanes/products.h"

namespace innervoice {

const LaneKernels& avxvnni_lane_kernels() { return kLanesTable; }

}  // namespace innervoice
