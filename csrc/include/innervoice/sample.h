// Masked sampling on the CPU: sample.py defines it.
#pragma once

#include <cstdint>

#include "innervoice/thread_team.h"

namespace innervoice {

// How rows draw. Row b's ids: ranges[i] (half-open, ascending, apart) for i in [offsets[b], offsets[b + 1]).
struct SampleCall {
  const float* logits;  // [rows, vocabulary]
  std::int64_t rows, vocabulary;
  const std::int64_t *offsets, *ranges;  // [rows + 1], [n, 2]
  const float* temperature;              // [rows], 0: greedy
  const std::int64_t* top_k;             // [rows], 0: off
  const double* top_p;                   // [rows], 1: off
  const std::int64_t* keys;              // [rows, 3]: seed, n, d
  std::int64_t* ids;                     // [rows], -1 where a row cannot draw
  float* logprobs;                       // [rows]
};

void sample(ThreadTeam& team, const SampleCall& call);

}  // namespace innervoice
