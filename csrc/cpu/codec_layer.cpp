#include <algorithm>
#include <cmath>

#include "cpu/codec_memory.h"
#include "innervoice/codec.h"

namespace innervoice {

// Turns queries and keys of token m by its position; its keys and values go into the ring if the row brings
// it.
void WindowLayer::keep(const RingCall& call, std::int64_t m, float* qkv) const {
  const std::int64_t width = head_dim(), half = width / 2, row = m / call.tokens, token = m % call.tokens;
  const float *cos = call.cos + m * half, *sin = call.sin + m * half;
  for (std::int64_t head = 0; head < shape_.heads + shape_.groups; ++head) {
    float *a = qkv + head * width, *b = a + half;
    for (std::int64_t i = 0; i < half; ++i) {
      const float one = a[i] * cos[i] - b[i] * sin[i], other = b[i] * cos[i] + a[i] * sin[i];
      a[i] = one;
      b[i] = other;
    }
  }
  if (token >= call.n[row]) return;
  const std::int64_t size = shape_.groups * width, place = (call.start[row] + token) % call.places;
  float* keys = call.ring + (call.slots[row] * 2 * call.places + place) * size;
  const float* from = qkv + shape_.heads * width;
  std::copy_n(from, size, keys);
  std::copy_n(from + size, size, keys + call.places * size);
}

// What a head of token m sees of the ring.
void WindowLayer::attend(const RingCall& call, std::int64_t m, std::int64_t head, const float* qkv,
                         float* scores, float* y) const {
  const std::int64_t width = head_dim(), row = m / call.tokens, size = shape_.groups * width;
  if (m % call.tokens >= call.n[row]) {
    std::fill_n(y, width, 0.0f);
    return;
  }
  const std::int64_t position = call.start[row] + m % call.tokens;
  const std::int64_t first = std::max<std::int64_t>(0, position - shape_.window + 1);
  const float* keys =
      call.ring + call.slots[row] * 2 * call.places * size + head / (shape_.heads / shape_.groups) * width;
  voice_kernels_of(isa_).ring_attend(qkv + head * width, 1.0f / std::sqrt(static_cast<float>(width)), keys,
                                     keys + call.places * size, size, call.places, first % call.places,
                                     position - first + 1, width, scores, y);
}

void WindowLayer::run(ThreadTeam& team, const RingCall& call, const float* x, float* y) const {
  const VoiceKernels& kernels = voice_kernels_of(isa_);
  const std::int64_t rows = call.rows * call.tokens, D = channels(), heads = shape_.heads, width = head_dim();
  const std::int64_t three = parts_.qkv.weight.columns(), inner = heads * width,
                     hidden = parts_.up.weight.columns();
  if (rows == 0) return;
  const std::int64_t scores = lines(shape_.window + 16);
  float* normed = kept_memory().floats(lines(rows * D) + lines(rows * three) + lines(rows * inner) +
                                       lines(rows * hidden) + scores * team.num_threads());
  float *qkv = normed + lines(rows * D), *attended = qkv + lines(rows * three);
  float *made = attended + lines(rows * inner), *own = made + lines(rows * hidden);
  const auto items_of = [&](const Affine& layer) {
    return Items(isa_, layer.weight, rows, team.num_threads());
  };
  const Items for_qkv = items_of(parts_.qkv), for_out = items_of(parts_.out);
  const Items for_up = items_of(parts_.up), for_down = items_of(parts_.down);
  Finish out, up, down;
  out.scale = parts_.scale.data();
  out.add = x;
  up.gelu = true;
  down.scale = parts_.scale_ffn.data();
  down.add = y;
  team.run([&](Member& me) {
    const auto norm = [&](const Norm& by, const float* from) {
      team_norm(me, kernels, by, shape_.eps, from, rows, D, normed);
    };
    const auto product = [&](const Items& items, const Affine& layer, const float* from, const Finish& to,
                             float* into) { team_product(me, kernels, items, layer, from, to, into); };
    norm(parts_.norm, x);
    product(for_qkv, parts_.qkv, normed, Finish{}, qkv);
    me.for_each(rows, 8, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t m = first; m < last; ++m) keep(call, m, qkv + m * three);
    });
    me.for_each(rows * heads, 4, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t m = i % rows, head = i / rows;  // tokens of a head share its keys
        attend(call, m, head, qkv + m * three, own + scores * me.index(),
               attended + m * inner + head * width);
      }
    });
    product(for_out, parts_.out, attended, out, y);
    norm(parts_.norm_ffn, y);
    product(for_up, parts_.up, normed, up, made);
    product(for_down, parts_.down, made, down, y);
  });
}

}  // namespace innervoice
