// A matrix of weights as it lies in memory, of any kind: a view, nothing is owned. Row n gives output n.
#pragma once

#include <cstdint>

namespace innervoice {

enum class WeightKind { kFloat32, kBfloat16, kInt8, kInt4 };

struct Weight {
  WeightKind kind = WeightKind::kFloat32;
  std::int64_t rows = 0;     // N, outputs
  std::int64_t columns = 0;  // K, inputs
  const void* data =
      nullptr;  // [N, K] float, bfloat16 or int8; int4: uint8 [N, ceil(K / 2)], even k in the low half
  const float* scale = nullptr;                  // int8: [N], w = scale q
  const std::uint16_t* group_scale = nullptr;    // int4: float16 [N, ceil(K / group)]
  const std::uint16_t* group_minimum = nullptr;  // int4: w = scale q + minimum; null: w = scale (q - 8)
  std::int64_t group = 0;                        // int4: 32, 64 or 128

  std::int64_t num_groups() const { return group == 0 ? 0 : (columns + group - 1) / group; }
  std::int64_t row_bytes() const {
    switch (kind) {
      case WeightKind::kFloat32: return 4 * columns;
      case WeightKind::kBfloat16: return 2 * columns;
      case WeightKind::kInt8: return columns;
      default: return (columns + 1) / 2;
    }
  }
  const void* row(std::int64_t n) const { return static_cast<const char*>(data) + n * row_bytes(); }
};

}  // namespace innervoice
