// Rows of inputs in the form that the products read. Included inside a kernel file, behind bf16_product.h or
// bf16_dots.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/product_kernels.h"

namespace innervoice {
namespace {

constexpr float kLargestCode = 32767.0f;

inline std::int64_t spans_of(const Weight& w) {
  const std::int64_t span = w.group < kInt4Block ? kInt4Block : w.group;
  return (w.columns + span - 1) / span;
}

inline std::int64_t floats_of_shorts(std::int64_t count) { return rounded_up((count + 1) / 2, 16); }

inline std::int64_t ready_floats(const Weight& w, std::int64_t M) {
  const std::int64_t scales = rounded_up(M, 16);
  switch (w.kind) {
    case WeightKind::kInt8: return scales + floats_of_shorts(M * rounded_up(w.columns, kShorts));
    case WeightKind::kInt4: {
      // One row more: where a row is turned into codes before they are put in order.
      return scales + floats_of_shorts((M + 1) * rounded_up(w.columns, kInt4Block)) +
             M * spans_of(w) * kLanes;
    }
    case WeightKind::kBfloat16: return bf16_ready_floats(w, M);
    default: return 0;
  }
}

// codes[k] = x[k] / scale to the nearest, for the largest magnitude at kLargestCode; 0 from K to `padded`.
// NaN and infinity make the scale NaN, and with it every product.
inline float to_codes(const float* x, std::int64_t K, std::int64_t padded, std::int16_t* codes) {
  Vec largest = zero(), wrong = zero();
  std::int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) {
    const Vec one = load(x + k);
    largest = max(largest, max(one, mul(one, set1(-1.0f))));
    wrong = fma(one, zero(), wrong);
  }
  float lanes[kLanes], most = 0.0f, odd = sum(wrong);
  store(lanes, largest);
  for (const float lane : lanes) most = lane > most ? lane : most;
  for (std::int64_t i = k; i < K; ++i) {
    const float magnitude = std::fabs(x[i]);
    most = magnitude > most ? magnitude : most;
    odd += x[i] * 0.0f;
  }
  const float scale = most / kLargestCode + odd,
              inverse = most > 0.0f && odd == 0.0f ? kLargestCode / most : 0.0f;
  for (k = 0; k + kLanes <= K; k += kLanes) store_int16(codes + k, mul(load(x + k), set1(inverse)));
  for (; k < K; ++k) codes[k] = static_cast<std::int16_t>(std::nearbyintf(x[k] * inverse));
  for (; k < padded; ++k) codes[k] = 0;
  return scale;
}

// In each block the codes with k = i modulo 4 stand together, as `nibbles<i>` takes a weight's out of their
// bytes.
inline void in_order_of_nibbles(const std::int16_t* codes, std::int64_t padded, std::int16_t* ordered) {
  for (std::int64_t begin = 0; begin < padded; begin += kInt4Block) {
    for (int lane = 0; lane < kShorts; ++lane) {
      for (int i = 0; i < 4; ++i) ordered[begin + i * kShorts + lane] = codes[begin + 4 * lane + i];
    }
  }
}

// Sums of each group's codes in the lanes in which the group's products are summed.
inline void sums_of_groups(const Weight& w, const std::int16_t* codes, std::int64_t padded,
                           std::int32_t* sums) {
  const std::int64_t groups_a_span = w.group < kInt4Block ? kInt4Block / w.group : 1;
  const std::int64_t share = kLanes / groups_a_span, spans = spans_of(w);
  const std::int32_t factor = w.group_minimum == nullptr ? -8 : 1;
  for (std::int64_t lane = 0; lane < spans * kLanes; ++lane) sums[lane] = 0;
  for (std::int64_t g = 0; g * w.group < padded; ++g) {
    std::int32_t sum = 0;
    const std::int64_t end = (g + 1) * w.group < padded ? (g + 1) * w.group : padded;
    for (std::int64_t k = g * w.group; k < end; ++k) sum += codes[k];
    sums[g / groups_a_span * kLanes + g % groups_a_span * share] = factor * sum;
  }
}

inline Inputs ready(const Weight& w, const float* x, std::int64_t ldx, std::int64_t M, float* memory) {
  Inputs y;
  y.x = x;
  y.ldx = ldx;
  const std::int64_t K = w.columns;
  if (w.kind == WeightKind::kBfloat16) ready_bf16(w, y, M, memory);
  if (w.kind != WeightKind::kInt8 && w.kind != WeightKind::kInt4) return y;
  const bool is_int4 = w.kind == WeightKind::kInt4;
  y.ld = rounded_up(K, is_int4 ? kInt4Block : kShorts);
  float* scale = memory;
  auto* codes = reinterpret_cast<std::int16_t*>(memory + rounded_up(M, 16));
  if (is_int4) {
    auto* plain = codes + M * y.ld;
    auto* sums =
        reinterpret_cast<std::int32_t*>(memory + rounded_up(M, 16) + floats_of_shorts((M + 1) * y.ld));
    y.ld_sums = spans_of(w) * kLanes;
    for (std::int64_t m = 0; m < M; ++m) {
      scale[m] = to_codes(x + m * ldx, K, y.ld, plain);
      in_order_of_nibbles(plain, y.ld, codes + m * y.ld);
      sums_of_groups(w, plain, y.ld, sums + m * y.ld_sums);
    }
    y.sums = sums;
  } else {
    for (std::int64_t m = 0; m < M; ++m) scale[m] = to_codes(x + m * ldx, K, y.ld, codes + m * y.ld);
  }
  y.scale = scale;
  y.codes = codes;
  return y;
}

}  // namespace
}  // namespace innervoice
