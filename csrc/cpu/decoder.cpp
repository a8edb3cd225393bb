#include "innervoice/decoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu/attention_plan.h"
#include "cpu/decoder_checks.h"
#include "cpu/decoder_products.h"
#include "cpu/experts.h"
#include "cpu/fetch_pages.h"
#include "cpu/half.h"
#include "cpu/kernels.h"
#include "innervoice/gemm.h"
#include "innervoice/large_pages.h"

namespace innervoice {
namespace {

constexpr std::int64_t kMostTokens = 256;  // that pass through the layers together
constexpr std::int64_t kOutputs = 32;      // that a thread takes at a time
constexpr std::int64_t kPiecesAThread = 3;
constexpr std::int64_t kLogits = 256;        // that a thread takes at a time
constexpr std::int64_t kLogitsOfFew = 2048;  // of few rows

void use_large_pages_for(const DecoderModel& model) {
  std::vector<MemoryRange> ranges;
  const auto add = [&](const Weight& w) {
    ranges.push_back({w.data, static_cast<std::size_t>(w.num_bytes())});
    const std::int64_t rows = w.is_laned ? w.num_panels() * kLaneRows : w.rows;
    const auto groups = static_cast<std::size_t>(rows * w.num_groups());
    for (const std::uint16_t* numbers : {w.group_scale, w.group_minimum}) {
      if (numbers != nullptr) ranges.push_back({numbers, groups * sizeof(std::uint16_t)});
    }
  };
  add(model.output);
  for (const DecoderLayer& layer : model.layers) {
    for (const Weight* w : {&layer.qkv, &layer.attention_out, &layer.gate_up, &layer.down}) add(*w);
  }
  use_large_pages(std::move(ranges));
}

}  // namespace

struct Decoder::Work {
  struct Thread {
    Scratch ready, out, product, attention;
  };

  const DecoderModel model;
  const std::shared_ptr<ThreadTeam> team;
  const Isa isa;
  const Kernels& kernels;
  DecoderProducts products;
  Experts experts;
  std::int64_t D, F, pairs, num_outputs;
  std::vector<Thread> threads;
  std::vector<std::pair<std::int64_t, std::int64_t>> output_pieces;
  Scratch x_memory, normed_memory, heads_memory, attended_memory, gated_memory, angle_memory, partial_memory,
      wanted_memory;
  float *x = nullptr, *normed = nullptr, *heads = nullptr, *attended = nullptr, *gated = nullptr,
        *angles = nullptr;
  float *partials = nullptr, *hidden = nullptr;
  std::vector<std::atomic<std::int64_t>> joined;  // pieces of each join that are done

  Work(DecoderModel given, std::shared_ptr<ThreadTeam> threads_of, Isa chosen)
      : model(std::move(given)),
        team(std::move(threads_of)),
        isa(chosen),
        kernels(kernels_of(chosen)),
        products(chosen, model.is_exact),
        experts(chosen, team->num_threads()) {
    check_model(model);
    use_large_pages_for(model);
    D = model.embedding.columns;
    F = 0;
    for (const DecoderLayer& layer : model.layers) F = std::max(F, layer.down.columns);
    pairs = static_cast<std::int64_t>(model.inv_freq.size());
    num_outputs = model.num_heads * model.head_dim;
    threads.resize(static_cast<std::size_t>(team->num_threads()));
  }

  // Rows of x normed: for few rows every thread makes its own, which saves a meeting.
  const float* norm(Member& me, Thread& mine, const float* w, const float* from, std::int64_t count) {
    if (count <= kFewRows) {
      float* own = mine.out.floats(count * D);
      for (std::int64_t m = 0; m < count; ++m)
        kernels.rms_norm(from + m * D, w, model.norm_eps, D, own + m * D);
      return own;
    }
    me.for_each(count, 4, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t m = first; m < last; ++m)
        kernels.rms_norm(from + m * D, w, model.norm_eps, D, normed + m * D);
    });
    return normed;
  }

  void embed(Member& me, const DecoderBatch& batch, std::int64_t begin, std::int64_t count) {
    me.for_each(count, 4, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t m = first; m < last; ++m) {
        kernels.expand(model.embedding, batch.ids[begin + m], 0, D, x + m * D);
        for (std::int64_t i = 0; i < pairs; ++i) {
          const float angle =
              static_cast<float>(batch.positions[begin + m]) * model.inv_freq[static_cast<std::size_t>(i)];
          angles[(2 * m) * pairs + i] = as_stored(std::cos(angle) * model.rotary_scale);
          angles[(2 * m + 1) * pairs + i] = as_stored(std::sin(angle) * model.rotary_scale);
        }
      }
    });
  }

  float as_stored(float y) const { return model.rounds_to_bf16 ? float_of_bf16(bf16_of_float(y)) : y; }

  void rotate(float* head, std::int64_t m) const {
    const float *cosine = angles + 2 * m * pairs, *sine = cosine + pairs;
    const std::int64_t near = model.rope_interleaved ? 2 : 1, far = model.rope_interleaved ? 1 : pairs;
    for (std::int64_t i = 0; i < pairs; ++i) {
      const float a = head[i * near], b = head[i * near + far];
      head[i * near] = a * cosine[i] - b * sine[i];
      head[i * near + far] = b * cosine[i] + a * sine[i];
    }
  }

  void keep(const DecoderPages& pages, std::size_t layer, bool is_value, std::int64_t group,
            std::int64_t slot, const float* head) const {
    if (slot < 0) return;
    const std::int64_t G = model.num_kv_heads, size = model.head_dim;
    const std::int64_t tokens = static_cast<std::int64_t>(layer) * pages.num_pages * pages.page_size + slot;
    const std::int64_t place = (tokens * G + group) * size;
    void* to = is_value ? pages.v : pages.k;
    if (!pages.is_bf16) {
      std::memcpy(static_cast<float*>(to) + place, head, static_cast<std::size_t>(size) * sizeof(float));
      return;
    }
    auto* bf16 = static_cast<std::uint16_t*>(to) + place;
    for (std::int64_t d = 0; d < size; ++d) bf16[d] = bf16_of_float(head[d]);
  }

  // Length of a piece for few rows, in whole units: these wait for memory wherever a piece begins, so that
  // pieces are as long as a fair share among threads allows.
  static std::int64_t grain_of(const Member& me, std::int64_t length, std::int64_t unit) {
    const std::int64_t pieces = me.num_threads() == 1 ? 1 : kPiecesAThread * me.num_threads();
    return (length + pieces * unit - 1) / (pieces * unit) * unit;
  }

  // Norm, queries, keys, values, their norms and rotation; a piece of work is some heads. Ends in a meeting.
  void project(Member& me, Thread& mine, std::size_t index, const DecoderBatch& batch,
               const DecoderPages& pages, std::int64_t begin, std::int64_t count) {
    const DecoderLayer& layer = model.layers[index];
    const std::int64_t H = model.num_heads, G = model.num_kv_heads, size = model.head_dim;
    const ProductSource from =
        products.source(me, mine.ready, layer.qkv, norm(me, mine, layer.attention_norm, x, count), D, count);
    const std::int64_t grain = count <= kFewRows ? grain_of(me, H + 2 * G, 1) : 1;
    me.for_each(H + 2 * G, grain, [&](std::int64_t first, std::int64_t last) {
      if (count <= kFewRows) {
        for (std::int64_t head = first; head < last; ++head)
          fetch_pages(model, batch, pages, index, head, H + 2 * G, me.num_threads());
      }
      const std::int64_t ldy = (last - first) * size;
      float* y = mine.attention.floats(count * ldy);
      products.multiply(mine.product, from, first * size, last * size, y, ldy);
      for (std::int64_t head = first; head < last; ++head) {
        const bool is_query = head < H, is_value = head >= H + G;
        const float* norm_weight = is_value ? nullptr : is_query ? layer.q_norm : layer.k_norm;
        for (std::int64_t m = 0; m < count; ++m) {
          float* row = y + m * ldy + (head - first) * size;
          if (layer.qkv_bias != nullptr) {
            for (std::int64_t d = 0; d < size; ++d) row[d] += layer.qkv_bias[head * size + d];
          }
          if (norm_weight != nullptr) kernels.rms_norm(row, norm_weight, model.norm_eps, size, row);
          if (!is_value) rotate(row, m);
          if (!is_query) {
            keep(pages, index, is_value, (head - H) % G, batch.slots[begin + m], row);
          } else {
            std::memcpy(heads + m * num_outputs + head * size, row,
                        static_cast<std::size_t>(size) * sizeof(float));
          }
        }
      }
    });
  }

  void attend(Thread& mine, const AttentionPlan& plan, const AttentionPiece& piece, std::size_t layer,
              const DecoderBatch& batch, const DecoderPages& pages, std::int64_t begin) {
    const std::int64_t G = model.num_kv_heads, size = model.head_dim, each = model.num_heads / G,
                       rows = piece.count * each;
    const std::int64_t place =
        static_cast<std::int64_t>(layer) * pages.num_pages * pages.page_size * G * size + piece.group * size;
    const std::int64_t bytes = place * (pages.is_bf16 ? 2 : 4), m = piece.first - begin;
    PagedKeys keys = {static_cast<const char*>(pages.k) + bytes,
                      static_cast<const char*>(pages.v) + bytes,
                      pages.is_bf16,
                      pages.page_size * G * size,
                      G * size,
                      pages.page_size,
                      batch.page_table + piece.row * batch.columns,
                      batch.query_tag == nullptr ? nullptr : pages.key_tag};
    Queries queries = {heads + m * num_outputs + piece.group * each * size,
                       num_outputs,
                       piece.count,
                       each,
                       size,
                       piece.position,
                       batch.query_tag == nullptr ? nullptr : batch.query_tag + piece.first,
                       batch.query_tag == nullptr ? nullptr : batch.log_weight + piece.first,
                       1.0f / std::sqrt(static_cast<float>(size))};
    const bool is_whole = piece.join < 0;
    const std::int64_t own = is_whole ? rows * (size + 2) : 0;
    float* memory = mine.attention.floats(own + kernels.attend_floats(rows, size));
    float* result = is_whole ? memory : partials + piece.partial * (size + 2);
    kernels.attend(queries, keys, piece.begin, piece.end, result + 2 * rows, result, result + rows,
                   memory + own);
    std::int64_t num_pieces = 1;
    if (!is_whole) {
      const AttentionJoin& join = plan.joins[static_cast<std::size_t>(piece.join)];
      num_pieces = join.num_pieces;
      std::atomic<std::int64_t>& done = joined[static_cast<std::size_t>(piece.join)];
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 < num_pieces) return;
      done.store(0, std::memory_order_relaxed);  // for the next layer, behind the next meeting
      result = partials + join.partial * (size + 2);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t query = row / each, head = piece.group * each + row % each;
      merge(result, rows, row, num_pieces, attended + (m + query) * num_outputs + head * size);
    }
  }

  // The pieces' results for one query and head, weighed by their largest scores; always in the same order.
  void merge(const float* pieces, std::int64_t rows, std::int64_t row, std::int64_t num_pieces,
             float* y) const {
    const std::int64_t size = model.head_dim, stride = rows * (size + 2);
    float most = -INFINITY, total = 0.0f;
    for (std::int64_t p = 0; p < num_pieces; ++p) most = std::max(most, pieces[p * stride + row]);
    std::fill(y, y + size, 0.0f);
    for (std::int64_t p = 0; p < num_pieces; ++p) {
      const float* piece = pieces + p * stride;
      const float factor = piece[row] == -INFINITY ? 0.0f : std::exp(piece[row] - most);
      total += factor * piece[rows + row];
      for (std::int64_t d = 0; d < size; ++d) y[d] += factor * piece[2 * rows + row * size + d];
    }
    for (std::int64_t d = 0; d < size; ++d) y[d] /= total;
  }

  // x += from W^T, a few outputs a piece. Ends in a meeting.
  void add_product(Member& me, Thread& mine, const Weight& w, const float* from, std::int64_t count) {
    const ProductSource inputs = products.source(me, mine.ready, w, from, w.columns, count);
    const std::int64_t grain = count <= kFewRows ? grain_of(me, D, kOutputs) : kOutputs;
    me.for_each(D, grain, [&](std::int64_t first, std::int64_t last) {
      float* y = mine.out.floats(count * grain);
      products.multiply(mine.product, inputs, first, last, y, grain);
      for (std::int64_t m = 0; m < count; ++m) {
        for (std::int64_t n = first; n < last; ++n) x[m * D + n] += y[m * grain + n - first];
      }
    });
  }

  ExpertLayer experts_of(const DecoderLayer& layer) const {
    return {layer.router,   layer.gate_up, layer.down, model.num_used_experts, model.normalizes_experts,
            layer.ffn_norm, model.norm_eps};
  }

  void feed_forward(Member& me, Thread& mine, const DecoderLayer& layer, std::int64_t count) {
    if (layer.router.rows > 0) return experts.add(me, products, experts_of(layer), x, count, x);
    const std::int64_t width = layer.down.columns;
    const ProductSource from =
        products.source(me, mine.ready, layer.gate_up, norm(me, mine, layer.ffn_norm, x, count), D, count);
    const std::int64_t grain = count <= kFewRows ? grain_of(me, width, kOutputs) : kOutputs;
    me.for_each(width, grain, [&](std::int64_t first, std::int64_t last) {
      float* gate = mine.attention.floats(2 * count * grain);
      float* up = gate + count * grain;
      products.multiply(mine.product, from, first, last, gate, grain);
      products.multiply(mine.product, from, width + first, width + last, up, grain);
      for (std::int64_t m = 0; m < count; ++m) {
        kernels.silu_mul(gate + m * grain, up + m * grain, last - first, gated + m * width + first);
      }
    });
    add_product(me, mine, layer.down, gated, count);
  }

  void layers(Member& me, const DecoderBatch& batch, const DecoderPages& pages, const AttentionPlan& plan,
              std::int64_t begin, std::int64_t count) {
    Thread& mine = threads[static_cast<std::size_t>(me.index())];
    embed(me, batch, begin, count);
    for (std::size_t index = 0; index < model.layers.size(); ++index) {
      project(me, mine, index, batch, pages, begin, count);
      me.for_each(static_cast<std::int64_t>(plan.pieces.size()), 1, [&](std::int64_t piece, std::int64_t) {
        attend(mine, plan, plan.pieces[static_cast<std::size_t>(piece)], index, batch, pages, begin);
      });
      add_product(me, mine, model.layers[index].attention_out, attended, count);
      feed_forward(me, mine, model.layers[index], count);
    }
  }

  // The ids whose logits are wanted, in pieces.
  void cut_outputs(const DecoderBatch& batch) {
    output_pieces.clear();
    const std::int64_t grain = batch.num_wanted <= kFewRows ? kLogitsOfFew : kLogits;
    const auto cut = [&](std::int64_t first, std::int64_t last) {
      for (; first < last; first += grain) output_pieces.emplace_back(first, std::min(first + grain, last));
    };
    if (batch.num_outputs < 0) return cut(0, model.output.rows);
    for (std::int64_t i = 0; i < batch.num_outputs; ++i) cut(batch.outputs[2 * i], batch.outputs[2 * i + 1]);
  }

  void head(Member& me, std::int64_t count, float* logits) {
    Thread& mine = threads[static_cast<std::size_t>(me.index())];
    const std::int64_t V = model.output.rows;
    for (std::int64_t begin = 0; begin < count; begin += kMostTokens) {
      const std::int64_t rows = std::min(kMostTokens, count - begin);
      const ProductSource from = products.source(
          me, mine.ready, model.output, norm(me, mine, model.final_norm, hidden + begin * D, rows), D, rows);
      me.for_each(static_cast<std::int64_t>(output_pieces.size()), 1, [&](std::int64_t piece, std::int64_t) {
        const auto [first, last] = output_pieces[static_cast<std::size_t>(piece)];
        products.multiply(mine.product, from, first, last, logits + begin * V + first, V);
      });
    }
  }

  void reserve(std::int64_t count, const AttentionPlan& plan, std::int64_t num_wanted) {
    x = x_memory.floats(count * D);
    products.reserve(model, count, std::min(num_wanted, kMostTokens));
    normed = normed_memory.floats(count * D);
    heads = heads_memory.floats(count * num_outputs);
    attended = attended_memory.floats(count * num_outputs);
    gated = gated_memory.floats(count * F);
    for (const DecoderLayer& layer : model.layers) {
      if (layer.router.rows > 0) experts.reserve(experts_of(layer), count);
    }
    angles = angle_memory.floats(count * 2 * pairs);
    partials = partial_memory.floats(plan.num_partials * (model.head_dim + 2));
    hidden = wanted_memory.floats(num_wanted * D);
    if (joined.size() < plan.joins.size()) joined = std::vector<std::atomic<std::int64_t>>(plan.joins.size());
  }
};

Decoder::Decoder(DecoderModel model, std::shared_ptr<ThreadTeam> team, Isa isa)
    : work_(std::make_unique<Work>(std::move(model), std::move(team), isa)) {}

Decoder::~Decoder() = default;

const DecoderModel& Decoder::model() const { return work_->model; }

void Decoder::step(const DecoderBatch& batch, const DecoderPages& pages, float* logits) {
  Work& work = *work_;
  check_batch(work.model, batch, pages);
  work.cut_outputs(batch);
  std::int64_t num_found = 0;
  for (std::int64_t begin = 0; begin < batch.num_tokens; begin += kMostTokens) {
    const std::int64_t count = std::min(kMostTokens, batch.num_tokens - begin), end = begin + count;
    const AttentionPlan plan = plan_attention(batch, work.model, begin, end);
    work.reserve(count, plan, batch.num_wanted);
    const bool is_last = end == batch.num_tokens;
    work.team->run([&](Member& me) {
      work.layers(me, batch, pages, plan, begin, count);
      if (me.index() == 0) {
        for (; num_found < batch.num_wanted && batch.wanted[num_found] < end; ++num_found) {
          std::memcpy(work.hidden + num_found * work.D, work.x + (batch.wanted[num_found] - begin) * work.D,
                      static_cast<std::size_t>(work.D) * sizeof(float));
        }
      }
      if (!is_last) return;
      me.meet();
      work.head(me, batch.num_wanted, logits);
    });
  }
}

}  // namespace innervoice
