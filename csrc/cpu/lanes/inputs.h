// Rows of inputs in whole numbers of 8 bits, as weights in lanes read them. Included inside a kernel file,
// behind its vectors and lanes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/lanes/kernels.h"
#include "cpu/lanes/memory.h"

namespace innervoice {
namespace {

constexpr float kLargestByte = 127.0f;
constexpr float kLeastMagnitude = 0x1p-100f;  // a block of smaller numbers counts as zeros
constexpr float kMostMagnitude = 0x1.fffffep127f;

// One block of a row: its codes, scale, and the sum of its codes.
struct ByteBlock {
  float scale;
  std::int32_t sum;

  // NaN and infinity make the scale NaN, and with it every product.
  ByteBlock(const float* x, std::int8_t* codes) {
    const std::int32_t bits = largest_bits(x);
    float most;
    std::memcpy(&most, &bits, sizeof(most));
    if (most >= kLeastMagnitude && most <= kMostMagnitude) {
      scale = most / kLargestByte;
      sum = round_block(x, kLargestByte / most, codes);
      return;
    }
    std::memset(codes, 0, kLaneColumns);
    scale = most < kLeastMagnitude ? 0.0f : NAN;
    sum = 0;
  }
};

inline LaneInputs ready_in_lanes(const Weight& w, const float* x, std::int64_t ldx, std::int64_t M,
                                 float* memory, std::int64_t first, std::int64_t last) {
  const LaneMemory parts(w, M);
  const std::int64_t blocks = w.num_blocks(), groups = w.num_groups();
  const std::int64_t blocks_a_group = w.kind == WeightKind::kInt4 ? w.group / kLaneColumns : 1;
  const std::int32_t moved = w.kind == WeightKind::kInt8 ? kMovedBytes : w.group_minimum == nullptr ? 8 : 0;
  auto* codes = reinterpret_cast<std::int8_t*>(memory);
  float* scale = memory + parts.codes;
  auto* start = reinterpret_cast<std::int32_t*>(scale + parts.blocks);
  float* sums = scale + 2 * parts.blocks;
  for (std::int64_t m = first; m < last; ++m) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const float* from = x + m * ldx + b * kLaneColumns;
      float padded[kLaneColumns];
      if ((b + 1) * kLaneColumns > w.columns) {
        const auto count = static_cast<std::size_t>(w.columns - b * kLaneColumns);
        std::memset(padded, 0, sizeof(padded));
        std::memcpy(padded, from, count * sizeof(float));
        from = padded;
      }
      const std::int64_t place = m * blocks + b;
      const ByteBlock made(from, codes + place * kLaneColumns);
      scale[place] = made.scale;
      start[place] = -moved * made.sum;
      if (w.group_minimum == nullptr) continue;
      float* sum = sums + m * groups + b / blocks_a_group;
      const float one = made.scale * static_cast<float>(made.sum);
      *sum = b % blocks_a_group == 0 ? one : *sum + one;
    }
  }
  return {codes, scale, start, w.group_minimum == nullptr ? nullptr : sums, blocks, groups};
}

}  // namespace
}  // namespace innervoice
