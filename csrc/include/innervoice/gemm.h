// Products of float32 rows with a weight of any kind, divided among the threads of a team.
#pragma once

#include <cstdint>
#include <vector>

#include "innervoice/isa.h"
#include "innervoice/thread_team.h"
#include "innervoice/weight.h"

namespace innervoice {

// Memory of one thread that grows to what is asked for and is then kept; aligned to cache lines.
class Scratch {
 public:
  float* floats(std::int64_t count);

 private:
  std::vector<float> memory_;
};

// y[m, n] = sum_k x[m, k] w[n, k] for m in [0, M), n in [first, last), on the calling thread alone; y points
// to column `first`. Sums run over k in an order that depends on nothing but K and the instructions. Rows of
// x and y lie ldx and ldy floats apart. Quantised weights are multiplied as the float32 numbers they stand
// for.
void gemm_columns(Isa isa, const float* x, std::int64_t ldx, std::int64_t M, const Weight& w,
                  std::int64_t first, std::int64_t last, float* y, std::int64_t ldy, Scratch& scratch);

// y = x W^T + bias (null: none) for x [M, K], W [N, K], y [M, N], by all threads.
void gemm(ThreadTeam& team, Isa isa, const float* x, std::int64_t ldx, std::int64_t M, const Weight& w,
          const float* bias, float* y, std::int64_t ldy);

// The same without bias, on the calling thread, as a decoder multiplies few rows: every row of w is read once
// and in order; with more than 16 rows a few rows of an int8 or int4 weight are unpacked once for all, where
// that is faster. Inputs of int8 and int4 weights are rounded to 16 bits, each row's largest magnitude at
// 32767; of bfloat16 weights to bfloat16 where the instructions multiply those. is_exact: inputs of quantised
// weights as they are.
void product(Isa isa, const float* x, std::int64_t ldx, std::int64_t M, const Weight& w, float* y,
             std::int64_t ldy, bool is_exact = false);

}  // namespace innervoice
