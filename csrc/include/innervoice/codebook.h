// Vectors of codebooks: the nearest one, found while the products are made, and sums.
#pragma once

#include <cstdint>
#include <vector>

#include "innervoice/isa.h"
#include "innervoice/thread_team.h"
#include "innervoice/weight.h"

namespace innervoice {

// ids[m] = the first n with the least |c_n|^2 - 2 x_m c_n, for x [M, D] and codes c [K, D]; K is above 0. A
// row's id depends on that row alone; where all its distances are NaN it is 0.
void nearest_code(ThreadTeam& team, Isa isa, const float* x, std::int64_t M, const Weight& codes,
                  std::int64_t* ids);

// z[m, g] = the sum of c_k[ids[b, k, t]] over the codebooks k of group g, m = (b, t): ids [B, K, T], codes c
// [K N, D] of floats or bfloat16, sizes: codebooks of each group, in order, K together -> z [B T, G, D].
void sum_codes(ThreadTeam& team, Isa isa, const std::int64_t* ids, std::int64_t B, std::int64_t T,
               const Weight& codes, std::int64_t N, const std::vector<std::int64_t>& sizes, float* z);

}  // namespace innervoice
