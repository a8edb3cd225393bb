#include <algorithm>

#include "cpu/codec_memory.h"
#include "innervoice/relative.h"

namespace innervoice {
namespace {

constexpr float kEps = 1e-5f;

std::vector<PackedWeight> packed_positions(Isa isa, const float* positions, std::int64_t heads,
                                           std::int64_t distances, std::int64_t width) {
  std::vector<PackedWeight> made;
  for (std::int64_t head = 0; head < heads; ++head) {
    made.emplace_back(isa, false, positions + head * distances * width, distances, 1, width);
  }
  return made;
}

}  // namespace

std::int64_t relative_floats(std::int64_t keys, std::int64_t distances, std::int64_t width) {
  constexpr std::int64_t kWidestPanel = 32, kMostRows = 12;
  const auto whole = [](std::int64_t n) { return (n + kWidestPanel - 1) / kWidestPanel * kWidestPanel; };
  return lines(whole(keys) * (width + whole(width)) +
               kMostRows * (whole(keys) + whole(distances) + 2 * width));
}

void relative_attention(ThreadTeam& team, Isa isa, const RelativeCall& call) {
  const std::int64_t width = call.width, distances = call.keys + call.queries - 1;
  const std::vector<PackedWeight> positions =
      packed_positions(isa, call.positions, call.heads, distances, width);
  const VoiceKernels& kernels = voice_kernels_of(isa);
  const std::int64_t own = relative_floats(call.keys, distances, width);
  float* memory = kept_memory().floats(own * team.num_threads());
  team.run([&](Member& me) {
    me.for_each(call.rows * call.heads, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t head = i % call.heads;
        RelativeHead one{};
        one.q = {call.q + i * call.queries * width, width, call.queries};
        one.k[1] = {call.k + i * call.keys * width, width, call.keys};
        one.v[1] = {call.v + i * call.keys * width, width, call.keys};
        one.bias_u = call.bias_u + head * width;
        one.bias_v = call.bias_v + head * width;
        one.positions = positions[static_cast<std::size_t>(head)].panels();
        one.distances = distances;
        one.width = width;
        one.visible = call.visible + i / call.heads * call.queries * call.keys;
        kernels.relative_attend(one, call.y + i * call.queries * width, width, memory + me.index() * own);
      }
    });
  });
}

RelativeLayer::RelativeLayer(Isa isa, Parts parts, std::int64_t heads, const float* positions,
                             std::int64_t distances)
    : isa_(isa),
      parts_(std::move(parts)),
      heads_(heads),
      distances_(distances),
      positions_(packed_positions(isa, positions, heads, distances, channels() / heads)) {}

void RelativeLayer::attend(const EncodedCall& call, std::int64_t row, std::int64_t head, const float* qkv,
                           float* y, float* scratch) const {
  const std::int64_t D = channels(), width = D / heads_, kept = cached(call.tokens);
  const float* old = call.cache + row * kept * 2 * D + head * width;
  const float* made = qkv + row * call.tokens * 3 * D + head * width;
  RelativeHead one{};
  one.q = {made, 3 * D, call.tokens};
  one.k[0] = {old, 2 * D, kept};
  one.v[0] = {old + D, 2 * D, kept};
  one.k[1] = {made + D, 3 * D, call.tokens};
  one.v[1] = {made + 2 * D, 3 * D, call.tokens};
  one.bias_u = parts_.bias_u.data() + head * width;
  one.bias_v = parts_.bias_v.data() + head * width;
  one.positions = positions_[static_cast<std::size_t>(head)].panels();
  one.distances = distances_;
  one.width = width;
  one.visible = call.visible + row * call.tokens * (kept + call.tokens);
  voice_kernels_of(isa_).relative_attend(one, y + row * call.tokens * D + head * width, D, scratch);
}

void RelativeLayer::run(ThreadTeam& team, const EncodedCall& call, const float* x, float* y) const {
  const VoiceKernels& kernels = voice_kernels_of(isa_);
  const std::int64_t rows = call.rows * call.tokens, D = channels(), hidden = parts_.up.weight.columns();
  if (rows == 0) return;
  const std::int64_t kept = cached(call.tokens),
                     own = relative_floats(kept + call.tokens, distances_, D / heads_);
  float* normed = kept_memory().floats(2 * lines(rows * D) + lines(rows * 3 * D) + lines(rows * hidden) +
                                       own * team.num_threads());
  float *qkv = normed + lines(rows * D), *attended = qkv + lines(rows * 3 * D),
        *made = attended + lines(rows * D);
  float* memory = made + lines(rows * hidden);
  const auto items_of = [&](const Affine& layer) {
    return Items(isa_, layer.weight, rows, team.num_threads());
  };
  const Items for_qkv = items_of(parts_.qkv), for_out = items_of(parts_.out);
  const Items for_up = items_of(parts_.up), for_down = items_of(parts_.down);
  Finish out, up, down;
  out.add = x;
  up.silu = true;
  down.add = y;
  team.run([&](Member& me) {
    const auto norm = [&](const Norm& by, const float* from) {
      team_norm(me, kernels, by, kEps, from, rows, D, normed);
    };
    const auto product = [&](const Items& items, const Affine& layer, const float* from, const Finish& to,
                             float* into) { team_product(me, kernels, items, layer, from, to, into); };
    norm(parts_.norm, x);
    product(for_qkv, parts_.qkv, normed, Finish{}, qkv);
    me.for_each(call.rows * heads_, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        attend(call, i / heads_, i % heads_, qkv, attended, memory + own * me.index());
      }
    });
    me.for_each(call.rows, 1, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const float* old = call.cache + row * kept * 2 * D;
        float* after = call.cache_after + row * kept * 2 * D;
        const std::int64_t still = std::max<std::int64_t>(0, kept - call.closed[row]);  // of the old ones
        std::copy_n(old + (kept - still) * 2 * D, still * 2 * D, after);
        for (std::int64_t i = still; i < kept; ++i) {
          const std::int64_t token = row * call.tokens + call.closed[row] - kept + i;
          std::copy_n(qkv + token * 3 * D + D, 2 * D, after + i * 2 * D);
        }
      }
    });
    product(for_out, parts_.out, attended, out, y);
    norm(parts_.norm_ffn, y);
    product(for_up, parts_.up, normed, up, made);
    product(for_down, parts_.down, made, down, y);
  });
}

}  // namespace innervoice
