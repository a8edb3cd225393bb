// A matrix of weights as it lies in memory, of any kind: a view, nothing is owned. Row n gives output n.
#pragma once

#include <cstdint>

namespace innervoice {

enum class WeightKind { kFloat32, kBfloat16, kInt8, kInt4 };

constexpr std::int64_t kLaneRows = 16;     // rows of a panel
constexpr std::int64_t kLaneColumns = 32;  // columns of a block, whose inputs have one scale

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
  // Codes of int8 or int4 in lanes, for products with inputs of 8 bits: panels of 16 rows, in each blocks of
  // 32 columns. Four columns of a panel are 64 bytes, row after row; in a byte of int4 stand a column and, in
  // the high half, the column four further. What is past N and K is 0. Scales: int8 [16 panels], of int4
  // scales and minima [panels, groups, 16].
  bool is_laned = false;

  std::int64_t num_groups() const { return group == 0 ? 0 : (columns + group - 1) / group; }
  std::int64_t num_panels() const { return (rows + kLaneRows - 1) / kLaneRows; }
  std::int64_t num_blocks() const { return (columns + kLaneColumns - 1) / kLaneColumns; }
  std::int64_t panel_bytes() const {
    return num_blocks() * kLaneRows * kLaneColumns / (kind == WeightKind::kInt4 ? 2 : 1);
  }
  // Bytes of all codes.
  std::int64_t num_bytes() const { return is_laned ? num_panels() * panel_bytes() : rows * row_bytes(); }
  // Of a row, unless the weight is in lanes.
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
