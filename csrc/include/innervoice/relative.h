// The flow's token encoder on the CPU: attention with relative positions over cached and new keys, and a
// layer of it; relative.py and relative_layer.py define them. A row's numbers depend on neither its
// neighbours nor the threads.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "innervoice/voice.h"

namespace innervoice {

// q [rows, heads, queries, width], k and v [rows, heads, keys, width], biases [heads, width], positions
// [heads, keys + queries - 1, width] by falling distance, visible [rows, queries, keys] -> y as q. width: a
// multiple of 16.
struct RelativeCall {
  const float *q, *k, *v, *bias_u, *bias_v, *positions;
  const bool* visible;
  std::int64_t rows, heads, queries, keys, width;
  float* y;
};
void relative_attention(ThreadTeam& team, Isa isa, const RelativeCall& call);

// Tokens of a stream: cache [rows, C, 2, D], the keys and values before them; visible [rows, tokens, C +
// tokens]; closed[row]: new tokens whose keys and values are kept, in cache_after.
struct EncodedCall {
  const float* cache;
  const bool* visible;
  const std::int64_t* closed;
  std::int64_t rows, tokens;
  float* cache_after;
};

// y = x + out(attention(norm x)); y + down(silu(up(norm y))).
class RelativeLayer {
 public:
  struct Parts {
    Norm norm;
    Affine qkv, out;
    Norm norm_ffn;
    Affine up, down;
    std::vector<float> bias_u, bias_v;  // [heads, width]
  };

  // positions [heads, distances, width] by falling distance: distances = C + 2 tokens - 1.
  RelativeLayer(Isa isa, Parts parts, std::int64_t heads, const float* positions, std::int64_t distances);

  // x [rows, tokens, D] -> y [rows, tokens, D].
  void run(ThreadTeam& team, const EncodedCall& call, const float* x, float* y) const;

  std::int64_t channels() const { return parts_.qkv.weight.depth(); }
  std::int64_t cached(std::int64_t tokens) const { return distances_ - 2 * tokens + 1; }

 private:
  void attend(const EncodedCall& call, std::int64_t row, std::int64_t head, const float* qkv, float* y,
              float* scratch) const;

  Isa isa_;
  Parts parts_;
  std::int64_t heads_, distances_;
  std::vector<PackedWeight> positions_;  // of a head
};

}  // namespace innervoice
