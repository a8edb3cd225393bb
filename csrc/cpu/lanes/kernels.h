// Products of weights in lanes with inputs of 8 bits: what a file of lanes offers for its instructions. Its
// files are compiled without fused products and sums, so that all have the same bits.
#pragma once

#include <cstdint>

#include "innervoice/isa.h"
#include "innervoice/weight.h"

namespace innervoice {

// Rows of inputs as weights in lanes read them: whole numbers of 8 bits, one scale a block of 32 columns, its
// largest magnitude at 127.
struct LaneInputs {
  const std::int8_t* codes = nullptr;  // [M, 32 blocks], 0 past K
  const float* scale = nullptr;        // [M, blocks]
  const std::int32_t* start =
      nullptr;                  // [M, blocks]: what a block's sums begin with, for codes that are moved
  const float* sums = nullptr;  // [M, groups], of int4 with minimum: of each group's inputs as rounded
  std::int64_t blocks = 0;
  std::int64_t groups = 0;
};

struct LaneKernels {
  // x [M, K] made ready for w, in `memory` of lane_floats floats, aligned to a cache line. Rows [first, last)
  // alone are written, so that threads may share the work.
  LaneInputs (*ready)(const Weight& w, const float* x, std::int64_t ldx, std::int64_t M, float* memory,
                      std::int64_t first, std::int64_t last);

  // y[m, n - first] = sum_k x[m, k] w[n, k] for n in [first, last), rows of y ldy floats apart.
  void (*product)(const Weight& w, std::int64_t first, std::int64_t last, const LaneInputs& x, std::int64_t M,
                  float* y, std::int64_t ldy);
};

std::int64_t lane_floats(const Weight& w, std::int64_t M);

// Throws std::invalid_argument when isa is not available here.
const LaneKernels& lane_kernels_of(Isa isa);

const LaneKernels& plain_lane_kernels();
const LaneKernels& neon_lane_kernels();
const LaneKernels& avx2_lane_kernels();
const LaneKernels& avxvnni_lane_kernels();
const LaneKernels& avx512_lane_kernels();

}  // namespace innervoice
