#include "cpu/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace innervoice {
namespace {

constexpr std::int64_t kRoutedRows = 4;      // that a thread routes at a time
constexpr std::int64_t kExpertOutputs = 32;  // of an expert that a thread takes at a time

}  // namespace

void Experts::reserve(const ExpertLayer& layer, std::int64_t count) {
  const std::int64_t D = layer.router.columns, pairs = count * layer.num_used;
  normed_ = normed_memory_.floats(count * D);
  gated_ = gated_memory_.floats(pairs * layer.down.columns);
  results_ = result_memory_.floats(pairs * D);
  shares_ = share_memory_.floats(pairs);
  for (auto* numbers : {&expert_, &place_, &pair_at_}) {
    if (static_cast<std::int64_t>(numbers->size()) < pairs) numbers->resize(static_cast<std::size_t>(pairs));
  }
}

// The highest logits of a row, among equal ones the first, and their softmax values.
void Experts::choose(const ExpertLayer& layer, const float* logits, std::int64_t row) {
  const std::int64_t E = layer.router.rows, used = layer.num_used;
  std::int64_t* chosen = expert_.data() + row * used;
  float* share = shares_ + row * used;
  std::int64_t found = 0;
  for (std::int64_t e = 0; e < E; ++e) {
    std::int64_t at = found;
    while (at > 0 && !(logits[chosen[at - 1]] >= logits[e])) --at;
    if (at == used) continue;
    found = std::min(found + 1, used);
    for (std::int64_t i = found - 1; i > at; --i) chosen[i] = chosen[i - 1];
    chosen[at] = e;
  }
  float total = 0.0f;
  for (std::int64_t j = 0; j < used; ++j) total += share[j] = std::exp(logits[chosen[j]] - logits[chosen[0]]);
  if (!layer.is_normalized) {
    total = 0.0f;
    for (std::int64_t e = 0; e < E; ++e) total += std::exp(logits[e] - logits[chosen[0]]);
  }
  for (std::int64_t j = 0; j < used; ++j) share[j] /= total;
}

void Experts::route(Thread& mine, const DecoderProducts& products, const ExpertLayer& layer, const float* x,
                    std::int64_t first, std::int64_t last) {
  const std::int64_t D = layer.router.columns, E = layer.router.rows;
  for (std::int64_t m = first; m < last; ++m) {
    if (layer.norm != nullptr) {
      kernels_.rms_norm(x + m * D, layer.norm, layer.norm_eps, D, normed_ + m * D);
    } else {
      std::memcpy(normed_ + m * D, x + m * D, static_cast<std::size_t>(D) * sizeof(float));
    }
  }
  float* logits = mine.logits.floats((last - first) * E);
  const ProductSource from =
      products.own_source(mine.ready, layer.router, normed_ + first * D, D, last - first);
  products.multiply(mine.product, from, 0, E, logits, E);
  for (std::int64_t m = first; m < last; ++m) choose(layer, logits + (m - first) * E, m);
}

// Pairs of a row and an expert in the order of the experts, rows ascending.
void Experts::sort(std::int64_t num_pairs, std::int64_t num_experts) {
  start_.assign(static_cast<std::size_t>(num_experts + 1), 0);
  for (std::int64_t p = 0; p < num_pairs; ++p) ++start_[static_cast<std::size_t>(expert_[p] + 1)];
  groups_.clear();
  for (std::int64_t e = 0; e < num_experts; ++e) {
    const auto at = static_cast<std::size_t>(e);
    if (start_[at + 1] > 0) groups_.push_back({e, start_[at], start_[at + 1]});
    start_[at + 1] += start_[at];
  }
  for (std::int64_t p = 0; p < num_pairs; ++p) {
    const std::int64_t place = start_[static_cast<std::size_t>(expert_[p])]++;
    place_[static_cast<std::size_t>(p)] = place;
    pair_at_[static_cast<std::size_t>(place)] = p;
  }
}

// A group's inputs, made ready by every thread that multiplies them, once for all the pieces that it takes.
const ProductSource& Experts::inputs(Thread& mine, const DecoderProducts& products, const Weight& w,
                                     const Group& group, std::int64_t index, bool is_gathered) {
  if (mine.group == index) return mine.source;
  const std::int64_t K = w.columns;
  const float* from = gated_ + group.first * K;
  if (is_gathered) {
    float* rows = mine.rows.floats(group.count * K);
    for (std::int64_t i = 0; i < group.count; ++i) {
      const std::int64_t row = pair_at_[static_cast<std::size_t>(group.first + i)] / num_used_;
      std::memcpy(rows + i * K, normed_ + row * K, static_cast<std::size_t>(K) * sizeof(float));
    }
    from = rows;
  }
  mine.group = index;
  mine.source = products.own_source(mine.ready, w, from, K, group.count);
  return mine.source;
}

void Experts::add(Member& me, const DecoderProducts& products, const ExpertLayer& layer, const float* x,
                  std::int64_t count, float* y) {
  Thread& mine = threads_[static_cast<std::size_t>(me.index())];
  const std::int64_t D = layer.router.columns, F = layer.down.columns, used = layer.num_used;
  // The experts of every row, and the rows of every expert.
  me.for_each(count, kRoutedRows,
              [&](std::int64_t first, std::int64_t last) { route(mine, products, layer, x, first, last); });
  if (me.index() == 0) {
    num_used_ = used;
    sort(count * used, layer.router.rows);
  }
  me.meet();
  const auto num_groups = static_cast<std::int64_t>(groups_.size());
  // Gate and up, a few outputs of one expert a piece.
  mine.group = -1;
  const std::int64_t inner = (F + kExpertOutputs - 1) / kExpertOutputs,
                     outer = (D + kExpertOutputs - 1) / kExpertOutputs;
  me.for_each(num_groups * inner, 1, [&](std::int64_t piece, std::int64_t) {
    const Group& group = groups_[static_cast<std::size_t>(piece / inner)];
    const std::int64_t first = piece % inner * kExpertOutputs, last = std::min(first + kExpertOutputs, F);
    const ProductSource& from = inputs(mine, products, layer.gate_up, group, piece / inner, true);
    float* gate = mine.panel.floats(2 * group.count * kExpertOutputs);
    float* up = gate + group.count * kExpertOutputs;
    const std::int64_t row = 2 * F * group.expert;
    products.multiply(mine.product, from, row + first, row + last, gate, kExpertOutputs);
    products.multiply(mine.product, from, row + F + first, row + F + last, up, kExpertOutputs);
    for (std::int64_t i = 0; i < group.count; ++i) {
      kernels_.silu_mul(gate + i * kExpertOutputs, up + i * kExpertOutputs, last - first,
                        gated_ + (group.first + i) * F + first);
    }
  });
  // Down, for each pair by itself.
  mine.group = -1;
  me.for_each(num_groups * outer, 1, [&](std::int64_t piece, std::int64_t) {
    const Group& group = groups_[static_cast<std::size_t>(piece / outer)];
    const std::int64_t first = piece % outer * kExpertOutputs, last = std::min(first + kExpertOutputs, D);
    const ProductSource& from = inputs(mine, products, layer.down, group, piece / outer, false);
    const std::int64_t row = D * group.expert;
    products.multiply(mine.product, from, row + first, row + last, results_ + group.first * D + first, D);
  });
  // The sum of each row's experts, in the order of their shares.
  me.for_each(count, kRoutedRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t m = begin; m < end; ++m) {
      for (std::int64_t p = m * used; p < (m + 1) * used; ++p) {
        const float* result = results_ + place_[static_cast<std::size_t>(p)] * D;
        for (std::int64_t d = 0; d < D; ++d) y[m * D + d] += shares_[p] * result[d];
      }
    }
  });
}

void expert_ffn(ThreadTeam& team, Isa isa, const ExpertLayer& layer, const float* x, std::int64_t count,
                float* y, bool is_exact) {
  Experts experts(isa, team.num_threads());
  const DecoderProducts products(isa, is_exact);
  experts.reserve(layer, count);
  team.run([&](Member& me) { experts.add(me, products, layer, x, count, y); });
}

}  // namespace innervoice
