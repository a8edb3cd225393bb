// Weights as float32. Included inside a kernel file, behind its vectors.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/half.h"
#include "innervoice/weight.h"

namespace innervoice {
namespace {

inline void expand_int4(const Weight& w, std::int64_t n, std::int64_t begin, std::int64_t depth, float* y) {
  const auto* codes = static_cast<const std::uint8_t*>(w.row(n));
  const std::uint16_t* scales = w.group_scale + n * w.num_groups();
  const std::uint16_t* minima = w.group_minimum == nullptr ? nullptr : w.group_minimum + n * w.num_groups();
  for (std::int64_t k = begin; k < begin + depth;) {
    const std::int64_t g = k / w.group;
    std::int64_t end = (g + 1) * w.group;
    if (end > begin + depth) end = begin + depth;
    const float scale = float_of_half(scales[g]);
    const float offset = minima == nullptr ? -8.0f * scale : float_of_half(minima[g]);
    for (; k < end; ++k) {
      const int code = (codes[k >> 1] >> ((k & 1) * 4)) & 15;
      // scale (q - 8) is exact as written; scale q + minimum rounds the sum once.
      y[k - begin] = minima == nullptr ? scale * static_cast<float>(code - 8)
                                       : scale * static_cast<float>(code) + offset;
    }
  }
}

inline void expand(const Weight& w, std::int64_t n, std::int64_t begin, std::int64_t depth, float* y) {
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
    case WeightKind::kInt4: expand_int4(w, n, begin, depth, y); return;
  }
}

}  // namespace
}  // namespace innervoice
