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
    case WeightKind::kInt4:
      return scales + floats_of_shorts(M * rounded_up(w.columns, kInt4Block)) + M * spans_of(w) * kLanes;
    case WeightKind::kBfloat16: return bf16_ready_floats(w, M);
    default: return 0;
  }
}

// A row's codes are x[k] / scale to the nearest, for the largest magnitude at kLargestCode.
struct CodeScale {
  float scale, inverse;

  // NaN and infinity make the scale NaN, and with it every product.
  CodeScale(const float* x, std::int64_t K) {
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
    for (; k < K; ++k) {
      const float magnitude = std::fabs(x[k]);
      most = magnitude > most ? magnitude : most;
      odd += x[k] * 0.0f;
    }
    scale = most / kLargestCode + odd;
    inverse = most > 0.0f && odd == 0.0f ? kLargestCode / most : 0.0f;
  }

  // Of `count` numbers; 0 behind them, up to `padded`.
  void codes_of(const float* x, std::int64_t count, std::int64_t padded, std::int16_t* codes) const {
    std::int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) store_int16(codes + k, mul(load(x + k), set1(inverse)));
    for (; k < count; ++k) codes[k] = static_cast<std::int16_t>(std::nearbyintf(x[k] * inverse));
    for (; k < padded; ++k) codes[k] = 0;
  }
};

// A row's codes for an int4 weight. In each block those with k = i modulo 4 stand together, as `nibbles<i>`
// takes a weight's out of their bytes; sums of each group's codes lie in the lanes in which its products are
// summed.
inline void ready_int4(const Weight& w, const float* x, const CodeScale& to, std::int16_t* codes,
                       std::int32_t* sums) {
  const std::int64_t K = w.columns, groups_a_span = w.group < kInt4Block ? kInt4Block / w.group : 1;
  const std::int64_t share = kLanes / groups_a_span, part = w.group < kInt4Block ? w.group : kInt4Block;
  const std::int32_t factor = w.group_minimum == nullptr ? -8 : 1;
  for (std::int64_t lane = 0; lane < spans_of(w) * kLanes; ++lane) sums[lane] = 0;
  for (std::int64_t begin = 0; begin < K; begin += kInt4Block) {
    std::int16_t block[kInt4Block];
    to.codes_of(x + begin, K - begin < kInt4Block ? K - begin : kInt4Block, kInt4Block, block);
    for (int lane = 0; lane < kShorts; ++lane) {
      for (int i = 0; i < 4; ++i) codes[begin + i * kShorts + lane] = block[4 * lane + i];
    }
    for (std::int64_t k = 0; k < kInt4Block; k += part) {
      const std::int64_t g = (begin + k) / w.group;
      std::int32_t sum = 0;
      for (std::int64_t i = k; i < k + part; ++i) sum += block[i];
      sums[g / groups_a_span * kLanes + g % groups_a_span * share] += factor * sum;
    }
  }
}

inline Inputs ready(const Weight& w, const float* x, std::int64_t ldx, std::int64_t M, float* memory,
                    std::int64_t first, std::int64_t last) {
  Inputs y;
  y.x = x;
  y.ldx = ldx;
  const std::int64_t K = w.columns;
  if (w.kind == WeightKind::kBfloat16) ready_bf16(w, y, M, memory);
  if (w.kind != WeightKind::kInt8 && w.kind != WeightKind::kInt4) return y;
  const bool is_int4 = w.kind == WeightKind::kInt4;
  y.ld = rounded_up(K, is_int4 ? kInt4Block : kShorts);
  y.ld_sums = is_int4 ? spans_of(w) * kLanes : 0;
  float* scale = memory;
  auto* codes = reinterpret_cast<std::int16_t*>(memory + rounded_up(M, 16));
  auto* sums = reinterpret_cast<std::int32_t*>(memory + rounded_up(M, 16) + floats_of_shorts(M * y.ld));
  for (std::int64_t m = first; m < last; ++m) {
    const CodeScale to(x + m * ldx, K);
    scale[m] = to.scale;
    if (is_int4) {
      ready_int4(w, x + m * ldx, to, codes + m * y.ld, sums + m * y.ld_sums);
    } else {
      to.codes_of(x + m * ldx, K, y.ld, codes + m * y.ld);
    }
  }
  y.scale = scale;
  y.codes = codes;
  y.sums = is_int4 ? sums : nullptr;
  return y;
}

}  // namespace
}  // namespace innervoice
