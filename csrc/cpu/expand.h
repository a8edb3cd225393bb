// Weights as float32. Included inside a kernel file, behind its vectors.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/half.h"
#include "innervoice/weight.h"

namespace innervoice {
namespace {

// scale (q - 8), and scale q, is exact as written: 11 bits times 4; scale q + minimum rounds the sum once.
inline float expand_code(const Weight& w, std::int64_t n, std::int64_t k) {
  const int code = (static_cast<const std::uint8_t*>(w.row(n))[k >> 1] >> ((k& 1)* 4)) & 15;
  const std::int64_t place = n * w.num_groups() + k / w.group;
  const float scale = float_of_half(w.group_scale[place]);
  if (w.group_minimum == nullptr) return scale * static_cast<float>(code - 8);
  return scale * static_cast<float>(code) + float_of_half(w.group_minimum[place]);
}

template <bool kMinimum>
inline void expand_int4(const Weight& w, std::int64_t n, std::int64_t begin, std::int64_t depth, float* y) {
  const auto* codes = static_cast<const std::uint8_t*>(w.row(n));
  const std::uint16_t* scales = w.group_scale + n * w.num_groups();
  const std::uint16_t* minima = kMinimum ? w.group_minimum + n * w.num_groups() : nullptr;
  const std::int64_t last = begin + depth;
  std::int64_t k = begin;
  for (; k < last && k % 2 != 0; ++k) y[k - begin] = expand_code(w, n, k);
  while (k < last) {
    const std::int64_t g = k / w.group, end = (g + 1) * w.group < last ? (g + 1) * w.group : last;
    const Int4Group<kMinimum> group(scales + g, kMinimum ? minima + g : nullptr);
    for (; k + kLanes <= end; k += kLanes) store(y + k - begin, group.load(codes + k / 2));
    for (; k < end; ++k) y[k - begin] = expand_code(w, n, k);
  }
}

// The same of a weight in lanes.
inline void expand_lanes(const Weight& w, std::int64_t n, std::int64_t begin, std::int64_t depth, float* y) {
  const std::int64_t panel = n / kLaneRows, lane = n % kLaneRows;
  const auto* codes = static_cast<const std::uint8_t*>(w.data) + panel * w.panel_bytes() + lane * 4;
  for (std::int64_t k = begin; k < begin + depth; ++k) {
    if (w.kind == WeightKind::kInt8) {
      const auto code = static_cast<std::int8_t>(codes[k / 4 * 64 + k % 4]);
      y[k - begin] = w.scale[n] * static_cast<float>(code);
      continue;
    }
    const int code = (codes[k / 8 * 64 + k % 4] >> (k / 4 % 2 * 4)) & 15;
    const std::int64_t place = (panel * w.num_groups() + k / w.group) * kLaneRows + lane;
    const float scale = float_of_half(w.group_scale[place]);
    y[k - begin] = w.group_minimum == nullptr
                       ? scale * static_cast<float>(code - 8)
                       : scale * static_cast<float>(code) + float_of_half(w.group_minimum[place]);
  }
}

inline void expand(const Weight& w, std::int64_t n, std::int64_t begin, std::int64_t depth, float* y) {
  if (w.is_laned) return expand_lanes(w, n, begin, depth, y);
  const std::int64_t whole = depth - depth % kLanes;
  switch (w.kind) {
    case WeightKind::kFloat32: {
      std::memcpy(y, static_cast<const float*>(w.row(n)) + begin,
                  static_cast<std::size_t>(depth) * sizeof(float));
      return;
    }
    case WeightKind::kBfloat16: {
      const auto* x = static_cast<const std::uint16_t*>(w.row(n)) + begin;
      for (std::int64_t k = 0; k < whole; k += kLanes) store(y + k, load_bf16(x + k));
      for (std::int64_t k = whole; k < depth; ++k) y[k] = float_of_bf16(x[k]);
      return;
    }
    case WeightKind::kInt8: {
      const auto* x = static_cast<const std::int8_t*>(w.row(n)) + begin;
      const Vec scale = set1(w.scale[n]);
      for (std::int64_t k = 0; k < whole; k += kLanes) store(y + k, mul(scale, load_int8(x + k)));
      for (std::int64_t k = whole; k < depth; ++k) y[k] = w.scale[n] * static_cast<float>(x[k]);
      return;
    }
    case WeightKind::kInt4:
      if (w.group_minimum == nullptr) {
        expand_int4<false>(w, n, begin, depth, y);
      } else {
        expand_int4<true>(w, n, begin, depth, y);
      }
      return;
  }
}

}  // namespace
}  // namespace innervoice
