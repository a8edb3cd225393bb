// Attention with relative positions of one head, as relative.py defines it. Included inside a kernel file
// behind its vectors.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/voice/products.h"

namespace innervoice {
namespace {

// The score of a key that is not seen, so that a query that sees no key weighs all alike. Its product with
// any float is exact, being a power of two: softmax_row finds a difference of exactly 0 between such scores.
// It is above what softmax_row pads with: padding has no weight even there.
constexpr float kHidden = -0x1p99f;
static_assert(kHidden > kPadding);

// Keys and values of both parts as panels: their order is that of the keys.
inline void pack_head(const RelativeHead& head, std::int64_t keys, float* key_panels, float* values) {
  const std::int64_t width = head.width;
  std::int64_t i = 0;
  for (int part = 0; part < 2; ++part) {
    for (std::int64_t row = 0; row < head.k[part].count; ++row, ++i) {
      const float* value = head.v[part].data + row * head.v[part].stride;
      pack_key(head.k[part].data + row * head.k[part].stride, width,
               key_panels + i / kPanelColumns * kPanelColumns * width + i % kPanelColumns);
      for (std::int64_t first = 0; first < width; first += kPanelColumns) {
        const std::int64_t count = width - first < kPanelColumns ? width - first : kPanelColumns;
        pack_value(value + first, i, count, values + first * keys);
      }
    }
  }
}

// Scores of `rows` queries with panels of `columns` columns, `stride` floats from a query's to the next
// one's.
inline void panel_scores(const float* queries, std::int64_t rows, std::int64_t width, const float* panels,
                         std::int64_t columns, float* scores, std::int64_t stride) {
  float sums[kTileRows * kPanelColumns];
  for (std::int64_t first = 0; first < columns; first += kPanelColumns) {
    tile_of_rows<kTileRows>(rows, queries, width, 1, 0, width, panels + first * width, sums);
    for (std::int64_t i = 0; i < rows; ++i) {
      std::memcpy(scores + i * stride + first, sums + i * kPanelColumns, kPanelColumns * sizeof(float));
    }
  }
}

inline void relative_attend(const RelativeHead& head, float* y, std::int64_t y_stride, float* scratch) {
  const std::int64_t width = head.width, n = head.k[0].count + head.k[1].count, queries = head.q.count;
  const std::int64_t keys = rounded(n, kPanelColumns), distances = rounded(head.distances, kPanelColumns);
  float *key_panels = scratch, *values = key_panels + keys * width;
  float* content = values + keys * rounded(width, kPanelColumns);
  float *by_distance = content + kTileRows * keys, *with_u = by_distance + kTileRows * distances;
  float* with_v = with_u + kTileRows * width;
  std::memset(scratch, 0, static_cast<std::size_t>(content - scratch) * sizeof(float));
  pack_head(head, keys, key_panels, values);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
  float sums[kTileRows * kPanelColumns], share[kTileRows];
  for (std::int64_t m = 0; m < queries; m += kTileRows) {
    const std::int64_t rows = queries - m < kTileRows ? queries - m : kTileRows;
    for (std::int64_t i = 0; i < rows; ++i) {
      const float* q = head.q.data + (m + i) * head.q.stride;
      for (std::int64_t d = 0; d < width; d += kLanes) {
        store(with_u + i * width + d, add(load(q + d), load(head.bias_u + d)));
        store(with_v + i * width + d, add(load(q + d), load(head.bias_v + d)));
      }
    }
    panel_scores(with_u, rows, width, key_panels, keys, content, keys);
    // Key c of query u is at place queries - 1 - u + c: of the tile's panels those that its queries reach.
    const std::int64_t lowest = (queries - m - rows) / kPanelColumns * kPanelColumns;
    const std::int64_t reached = queries - 1 - m + n - lowest;
    panel_scores(with_v, rows, width, static_cast<const float*>(head.positions) + lowest * width, reached,
                 by_distance, distances);
    for (std::int64_t i = 0; i < rows; ++i) {
      float* scores = content + i * keys;
      const float* place = by_distance + i * distances + queries - 1 - m - i - lowest;
      const bool* sees = head.visible + (m + i) * n;
      for (std::int64_t c = 0; c < n; ++c) scores[c] = sees[c] ? (scores[c] + place[c]) * scale : kHidden;
      share[i] = 1.0f / softmax_row(scores, n, keys, scores);
    }
    for (std::int64_t first = 0; first < width; first += kPanelColumns) {
      const std::int64_t count = width - first < kPanelColumns ? width - first : kPanelColumns;
      tile_of_rows<kTileRows>(rows, content, keys, 1, 0, keys, values + first * keys, sums);
      for (std::int64_t i = 0; i < rows; ++i) {
        float whole[kPanelColumns];
        for (std::int64_t c = 0; c < kPanelColumns; c += kLanes) {
          store(whole + c, mul(load(sums + i * kPanelColumns + c), set1(share[i])));
        }
        std::memcpy(y + (m + i) * y_stride + first, whole, static_cast<std::size_t>(count) * sizeof(float));
      }
    }
  }
}

}  // namespace
}  // namespace innervoice
