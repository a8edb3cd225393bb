// A feed-forward part of experts: each row goes through the few that its router scores highest.
#pragma once

#include <cstdint>

#include "innervoice/isa.h"
#include "innervoice/thread_team.h"
#include "innervoice/weight.h"

namespace innervoice {

// The experts' matrices one below the other: expert e has rows [2 F e, 2 F (e + 1)) of gate_up, gate first,
// and rows [D e, D (e + 1)) of down.
struct ExpertLayer {
  Weight router;                // [E, D]
  Weight gate_up;               // [2 F E, D]
  Weight down;                  // [D E, F]
  std::int64_t num_used = 0;    // experts of a row
  bool is_normalized = true;    // their shares are divided by their sum
  const float* norm = nullptr;  // [D], RMSNorm in front, or null
  float norm_eps = 0.0f;
};

// y += sum of share_j expert_j(x) for x and y [count, D], by all threads; y may be x where there is a norm.
// The shares are softmax values of the router's logits. is_exact: inputs of quantised weights are not
// rounded.
void expert_ffn(ThreadTeam& team, Isa isa, const ExpertLayer& layer, const float* x, std::int64_t count,
                float* y, bool is_exact);

}  // namespace innervoice
