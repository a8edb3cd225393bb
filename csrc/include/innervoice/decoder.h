// A decoder's step on the CPU: token ids and pages in, logits out, all layers in one job of a thread team.
// The plain form of the same computation is Transformer in the engine's model/transformer.py.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "innervoice/isa.h"
#include "innervoice/thread_team.h"
#include "innervoice/weight.h"

namespace innervoice {

struct DecoderLayer {
  const float* attention_norm = nullptr;  // [D]
  Weight qkv;                             // [(H + 2 G) head_dim, D]: queries, keys, values
  const float* qkv_bias = nullptr;        // or null
  const float* q_norm = nullptr;          // [head_dim], or null
  const float* k_norm = nullptr;
  Weight attention_out;             // [D, H head_dim]
  const float* ffn_norm = nullptr;  // [D]
  Weight gate_up;                   // [2 F, D]: gate, up; of experts one below the other
  Weight down;                      // [D, F], the same
  Weight router;                    // [E, D] of experts; without rows: there are none
};

struct DecoderModel {
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  float norm_eps = 0.0f;
  bool rope_interleaved = false;
  std::vector<float> inv_freq;  // [rotary_dim / 2]
  float rotary_scale = 1.0f;    // of cosine and sine
  bool rounds_to_bf16 = false;  // cosine and sine, as the model's type has them
  bool is_exact =
      false;         // quantised weights are multiplied as float32 numbers, inputs not rounded to 16 bits
  Weight embedding;  // [V, D]
  std::vector<DecoderLayer> layers;
  std::int64_t num_used_experts = 0;  // of a token
  bool normalizes_experts = true;     // their shares are divided by their sum
  const float* final_norm = nullptr;  // [D]
  Weight output;                      // [V, D]
};

// Pages of all layers. Keys are stored rotated.
struct DecoderPages {
  void* k = nullptr;  // [L, P, page_size, G, head_dim] float32, or bfloat16
  void* v = nullptr;
  bool is_bf16 = false;
  std::int64_t num_pages = 0;
  std::int64_t page_size = 0;
  const std::int32_t* key_tag = nullptr;  // [P, page_size]
};

// A ragged batch, as AttentionInputs in model/transformer.py: row b owns tokens query_start[b] to
// query_start[b + 1], the last of its context_len[b].
struct DecoderBatch {
  std::int64_t num_tokens = 0;               // T
  std::int64_t num_rows = 0;                 // B
  const std::int64_t* ids = nullptr;         // [T]
  const std::int64_t* positions = nullptr;   // [T]
  const std::int64_t* slots = nullptr;       // [T]; negative: keys and values are not kept
  const std::int32_t* page_table = nullptr;  // [B, columns]
  std::int64_t columns = 0;
  const std::int32_t* query_start = nullptr;  // [B + 1]
  const std::int32_t* context_len = nullptr;  // [B]
  const std::int32_t* query_tag = nullptr;    // [T], or null: no reflection weight
  const float* log_weight = nullptr;          // [T]
  std::int64_t num_wanted = 0;
  const std::int64_t* wanted = nullptr;   // [num_wanted] tokens, ascending, whose logits are wanted
  std::int64_t num_outputs = -1;          // of which ids: -1: of all
  const std::int64_t* outputs = nullptr;  // [num_outputs, 2] half-open ranges, ascending and apart
};

class Decoder {
 public:
  // Throws std::invalid_argument for shapes that do not fit each other and an isa that is not available.
  Decoder(DecoderModel model, std::shared_ptr<ThreadTeam> team, Isa isa);
  ~Decoder();

  // Writes the batch's keys and values to the pages and logits [num_wanted, V]. Throws std::invalid_argument,
  // having written nothing, for ids, slots or pages that are not there. One call at a time.
  void step(const DecoderBatch& batch, const DecoderPages& pages, float* logits);

  const DecoderModel& model() const;

 private:
  struct Work;
  std::unique_ptr<Work> work_;
};

}  // namespace innervoice
