// Rows of logits combined into one on the CPU: fuse.py defines it.
#pragma once

#include <cstdint>

#include "innervoice/isa.h"
#include "innervoice/thread_team.h"

namespace innervoice {

// As fuse.py numbers them. kFirst: the first row as it is.
enum class Fusing : std::int64_t { kFirst, kPragmatic, kGuidance, kContrast };

// Group g's rows of logits: offsets[g] to offsets[g + 1], at least one, and two of guidance and contrast.
struct FuseCall {
  const float* logits;  // [rows, vocabulary]
  std::int64_t rows, vocabulary, groups;
  const std::int64_t* offsets;  // [groups + 1]
  const std::int64_t* kinds;    // [groups], of Fusing
  const float* weights;         // [groups, 3]: alpha, beta, ln alpha
  const float* log_prior;       // [rows]
  float* out;                   // [groups, vocabulary]
  float* stats;  // [rows, 2]: the largest logit, ln of the sum of exponentials beside it; NaN if any is
};

// Throws std::invalid_argument when isa is not available here.
void fuse(ThreadTeam& team, Isa isa, const FuseCall& call);

}  // namespace innervoice
