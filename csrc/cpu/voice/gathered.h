// Products of rows that lie anywhere, found by a table of their addresses: a convolution over a stream's past
// and its new columns needs no copy of both. Included inside a kernel file behind its vectors.
#pragma once

#include <cstdint>

#include "cpu/voice/products.h"

namespace innervoice {
namespace {

// out[m, n] (+)= the products of `taps` taps, a row of the table each, and k in [begin, end); one chain.
template <int kRows>
inline void gathered_tile(const float* const* rows, std::int64_t count, std::int64_t taps, std::int64_t begin,
                          std::int64_t end, const float* panel, float* out, bool is_first) {
  Vec total[kRows][kPanelVectors];
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kPanelVectors; ++v) total[m][v] = zero();
  }
  for (std::int64_t tap = 0; tap < taps; ++tap, rows += count) {
    const float* a[kRows];
    for (int m = 0; m < kRows; ++m) a[m] = rows[m];
    for (std::int64_t k = begin; k < end; ++k, panel += kPanelColumns) {
      Vec b[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) b[v] = load(panel + v * kLanes);
      for (int m = 0; m < kRows; ++m) {
        const Vec x = set1(a[m][k]);
        for (int v = 0; v < kPanelVectors; ++v) total[m][v] = fma(x, b[v], total[m][v]);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kPanelVectors; ++v) {
      float* y = out + m * kPanelColumns + v * kLanes;
      store(y, is_first ? total[m][v] : add(load(y), total[m][v]));
    }
  }
}

template <int kRows>
inline void gathered_tile_of_rows(std::int64_t some, const float* const* rows, std::int64_t count,
                                  std::int64_t taps, std::int64_t begin, std::int64_t end, const float* panel,
                                  float* out, bool is_first) {
  if (some == kRows) {
    gathered_tile<kRows>(rows, count, taps, begin, end, panel, out, is_first);
  } else if constexpr (kRows > 1) {
    gathered_tile_of_rows<kRows - 1>(some, rows, count, taps, begin, end, panel, out, is_first);
  }
}

// A piece of a panel that stays in the first cache meets all rows before the next one does.
inline void gathered_product(const float* const* rows, std::int64_t count, std::int64_t taps,
                             std::int64_t depth, const float* panels, std::int64_t columns,
                             const Finish& finish) {
  float sums[kGathered * kPanelColumns], bias[kPanelColumns];
  const std::int64_t together = depth < kChain ? kChain / depth : 1;  // taps of one chain
  for (std::int64_t first = 0; first < columns; first += kPanelColumns) {
    bool is_first = true;
    for (std::int64_t tap = 0; tap < taps; tap += together) {
      const std::int64_t some_taps = taps - tap < together ? taps - tap : together;
      for (std::int64_t begin = 0; begin < depth; begin += kChain) {
        const std::int64_t end = begin + kChain < depth ? begin + kChain : depth;
        for (std::int64_t m = 0; m < count; m += kTileRows) {
          const std::int64_t some = count - m < kTileRows ? count - m : kTileRows;
          gathered_tile_of_rows<kTileRows>(some, rows + tap * count + m, count, some_taps, begin, end, panels,
                                           sums + m * kPanelColumns, is_first);
        }
        panels += some_taps * (end - begin) * kPanelColumns;
        is_first = false;
      }
    }
    const std::int64_t wide = columns - first < kPanelColumns ? columns - first : kPanelColumns;
    for (std::int64_t n = 0; n < kPanelColumns; ++n) {
      bias[n] = finish.bias == nullptr || n >= wide ? 0.0f : finish.bias[first + n];
    }
    for (std::int64_t m = 0; m < count; ++m) {
      finish_row<float>(sums + m * kPanelColumns, bias, wide, m, first, finish);
    }
  }
}

inline void gathered_dots(const float* const* rows, std::int64_t count, std::int64_t taps, std::int64_t depth,
                          const float* weight, std::int64_t columns, const float* bias, float* y) {
  for (std::int64_t m = 0; m < count; ++m) {
    for (std::int64_t n = 0; n < columns; ++n) {
      const float* w = weight + n * taps * depth;
      Vec total[2] = {zero(), zero()};
      float rest = bias[n];
      for (std::int64_t tap = 0; tap < taps; ++tap, w += depth) {
        const float* a = rows[tap * count + m];
        std::int64_t k = 0;
        for (; k + 2 * kLanes <= depth; k += 2 * kLanes) {
          total[0] = fma(load(a + k), load(w + k), total[0]);
          total[1] = fma(load(a + k + kLanes), load(w + k + kLanes), total[1]);
        }
        for (; k < depth; ++k) rest += a[k] * w[k];
      }
      y[m * columns + n] = sum(add(total[0], total[1])) + rest;
    }
  }
}

// scores[j] = scale q k_j of `count` keys that lie one behind another; a key's neighbours do not change its
// bits.
inline void ring_scores(const float* q, float scale, const float* k, std::int64_t stride, std::int64_t count,
                        std::int64_t width, float* scores) {
  for (std::int64_t j = 0; j < count; j += 4) {
    const float* key[4];
    for (std::int64_t i = 0; i < 4; ++i) key[i] = k + (j + i < count ? j + i : count - 1) * stride;
    Vec total[4] = {zero(), zero(), zero(), zero()};
    for (std::int64_t d = 0; d < width; d += kLanes) {
      const Vec one = load(q + d);
      for (int i = 0; i < 4; ++i) total[i] = fma(one, load(key[i] + d), total[i]);
    }
    float sums[4];
    store_sums(sums, total);
    for (std::int64_t i = 0; i < 4 && j + i < count; ++i) scores[j + i] = sums[i] * scale;
  }
}

// y[0, 2 kLanes) += sum_j weights[j] v[j].
inline void ring_values(const float* weights, const float* v, std::int64_t stride, std::int64_t count,
                        Vec* total) {
  for (std::int64_t j = 0; j < count; ++j, v += stride) {
    const Vec weight = set1(weights[j]);
    total[0] = fma(weight, load(v), total[0]);
    if (kLanes < 16) total[1] = fma(weight, load(v + 16 - kLanes), total[1]);
  }
}

inline void ring_attend(const float* q, float scale, const float* k, const float* v, std::int64_t stride,
                        std::int64_t places, std::int64_t first, std::int64_t count, std::int64_t width,
                        float* scores, float* y) {
  const std::int64_t before = places - first < count ? places - first : count;  // the ring's end
  ring_scores(q, scale, k + first * stride, stride, before, width, scores);
  ring_scores(q, scale, k, stride, count - before, width, scores + before);
  const float share = 1.0f / softmax_row(scores, count, (count + kLanes - 1) / kLanes * kLanes, scores);
  for (std::int64_t d = 0; d < width; d += 16) {
    Vec total[2] = {zero(), zero()};
    ring_values(scores, v + first * stride + d, stride, before, total);
    ring_values(scores + before, v + d, stride, count - before, total);
    store(y + d, mul(total[0], set1(share)));
    if (kLanes < 16) store(y + d + 16 - kLanes, mul(total[1], set1(share)));
  }
}

}  // namespace
}  // namespace innervoice
