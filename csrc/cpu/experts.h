// The feed-forward part of experts inside a job of a thread team: rows are sorted by expert, so that the
// weights of each expert that is hit are read once.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/decoder_products.h"
#include "innervoice/experts.h"

namespace innervoice {

class Experts {
 public:
  Experts(Isa isa, int num_threads)
      : kernels_(kernels_of(isa)), threads_(static_cast<std::size_t>(num_threads)) {}

  // Memory for `count` rows; before the job.
  void reserve(const ExpertLayer& layer, std::int64_t count);

  // As expert_ffn; ends in a meeting.
  void add(Member& me, const DecoderProducts& products, const ExpertLayer& layer, const float* x,
           std::int64_t count, float* y);

 private:
  struct Thread {
    Scratch ready, rows, panel, product, logits;
    std::int64_t group = -1;  // whose inputs are ready
    ProductSource source = {};
  };
  struct Group {
    std::int64_t expert, first, count;  // rows in the order by expert
  };

  void route(Thread& mine, const DecoderProducts& products, const ExpertLayer& layer, const float* x,
             std::int64_t first, std::int64_t last);
  void choose(const ExpertLayer& layer, const float* logits, std::int64_t row);
  void sort(std::int64_t num_pairs, std::int64_t num_experts);
  const ProductSource& inputs(Thread& mine, const DecoderProducts& products, const Weight& w,
                              const Group& group, std::int64_t index, bool is_gathered);

  const Kernels& kernels_;
  std::vector<Thread> threads_;
  Scratch normed_memory_, gated_memory_, result_memory_, share_memory_;
  float *normed_ = nullptr, *gated_ = nullptr, *results_ = nullptr, *shares_ = nullptr;
  std::vector<std::int64_t> expert_, place_, pair_at_, start_;  // by pair; pair_at_: by place in the order
  std::vector<Group> groups_;
  std::int64_t num_used_ = 0;
};

}  // namespace innervoice
