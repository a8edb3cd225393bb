// Products of the voice: tiles that stay in registers, what becomes of their sums, attention of one head.
// Included inside a kernel file behind its vectors; kTileRows and kPanelVectors are set.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/voice/functions.h"
#include "cpu/voice/kernels.h"

namespace innervoice {
namespace {

constexpr std::int64_t kPanelColumns = kPanelVectors * kLanes;
// Products that are summed one after another: a sum's error grows with their number, and faster where each is
// rounded.
constexpr std::int64_t kChain = kIsFused ? 128 : 32;

// out[m, n] = sum over taps and k, [kRows, kPanelColumns], rows out_stride apart.
template <int kRows>
inline void tile(const float* a, std::int64_t row_stride, std::int64_t taps, std::int64_t tap_stride,
                 std::int64_t depth, const float* panel, float* out, std::int64_t out_stride) {
  bool is_first = true;
  for (std::int64_t tap = 0; tap < taps; ++tap, a += tap_stride) {
    for (std::int64_t begin = 0; begin < depth; begin += kChain) {
      const std::int64_t end = begin + kChain < depth ? begin + kChain : depth;
      Vec total[kRows][kPanelVectors];
      for (int m = 0; m < kRows; ++m) {
        for (int v = 0; v < kPanelVectors; ++v) total[m][v] = zero();
      }
      for (std::int64_t k = begin; k < end; ++k, panel += kPanelColumns) {
        Vec b[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) b[v] = load(panel + v * kLanes);
        for (int m = 0; m < kRows; ++m) {
          const Vec x = set1(a[m * row_stride + k]);
          for (int v = 0; v < kPanelVectors; ++v) total[m][v] = fma(x, b[v], total[m][v]);
        }
      }
      for (int m = 0; m < kRows; ++m) {
        for (int v = 0; v < kPanelVectors; ++v) {
          float* y = out + m * out_stride + v * kLanes;
          store(y, is_first ? total[m][v] : add(load(y), total[m][v]));
        }
      }
      is_first = false;
    }
  }
}

#if defined(INNERVOICE_HALVES)
template <int kRows>
inline void tile(const std::uint16_t* a, std::int64_t row_stride, std::int64_t taps, std::int64_t tap_stride,
                 std::int64_t depth, const std::uint16_t* panel, float* out, std::int64_t out_stride) {
  Vec total[kRows][kPanelVectors];
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kPanelVectors; ++v) total[m][v] = zero();
  }
  for (std::int64_t tap = 0; tap < taps; ++tap, a += tap_stride) {
    for (std::int64_t k = 0; k < depth; k += 2, panel += 2 * kPanelColumns) {
      __m512bh b[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) b[v] = (__m512bh)_mm512_loadu_si512(panel + v * 2 * kLanes);
      for (int m = 0; m < kRows; ++m) {
        std::int32_t pair;
        std::memcpy(&pair, a + m * row_stride + k, sizeof(pair));
        const auto x = (__m512bh)_mm512_set1_epi32(pair);
        for (int v = 0; v < kPanelVectors; ++v) total[m][v] = _mm512_dpbf16_ps(total[m][v], x, b[v]);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kPanelVectors; ++v) store(out + m * out_stride + v * kLanes, total[m][v]);
  }
}
#endif

template <int kRows, typename E>
inline void tile_of_rows(std::int64_t rows, const E* a, std::int64_t row_stride, std::int64_t taps,
                         std::int64_t tap_stride, std::int64_t depth, const E* panel, float* out,
                         std::int64_t out_stride = kPanelColumns) {
  if (rows == kRows) {
    tile<kRows>(a, row_stride, taps, tap_stride, depth, panel, out, out_stride);
  } else if constexpr (kRows > 1) {
    tile_of_rows<kRows - 1>(rows, a, row_stride, taps, tap_stride, depth, panel, out, out_stride);
  }
}

// One row of a whole panel; other: what is added, or null.
template <typename E>
inline void finish_whole_row(const float* sums, const float* bias, std::int64_t row, std::int64_t first,
                             const float* other, const Finish& to) {
  float* y = to.y == nullptr ? nullptr : to.y + row * to.y_stride + first;
  E* elements =
      to.elements == nullptr ? nullptr : static_cast<E*>(to.elements) + row * to.element_stride + first;
  for (std::int64_t n = 0; n < kPanelColumns; n += kLanes) {
    Vec x = add(load(sums + n), load(bias + n));
    if (to.gelu) x = gelu(x);
    if (to.elu) x = elu(x);
    if (to.silu) x = silu(x);
    if (to.scale != nullptr) x = mul(x, load(to.scale + first + n));
    if (other != nullptr) x = add(x, load(other + n));
    if (to.elu_last) x = elu(x);
    if (y != nullptr) store(y + n, x);
    if (elements != nullptr) put(elements + n, x);
  }
}

template <typename E>
inline void finish_row(float* sums, const float* bias, std::int64_t columns, std::int64_t row,
                       std::int64_t first, const Finish& to) {
  const float* other = to.add == nullptr ? nullptr : to.add + row * to.add_stride + first;
  if (columns == kPanelColumns) return finish_whole_row<E>(sums, bias, row, first, other, to);
  float scale[kPanelColumns], added[kPanelColumns] = {}, y[kPanelColumns];
  E elements[kPanelColumns];
  for (std::int64_t n = 0; n < columns; ++n) scale[n] = to.scale == nullptr ? 1.0f : to.scale[first + n];
  for (std::int64_t n = columns; n < kPanelColumns; ++n) scale[n] = 1.0f;
  for (std::int64_t n = 0; other != nullptr && n < columns; ++n) added[n] = other[n];
  Finish whole = to;
  whole.scale = scale;
  whole.y = y;
  whole.elements = elements;
  finish_whole_row<E>(sums, bias, 0, 0, added, whole);
  const auto count = static_cast<std::size_t>(columns);
  if (to.y != nullptr) std::memcpy(to.y + row * to.y_stride + first, y, count * sizeof(float));
  if (to.elements == nullptr) return;
  std::memcpy(static_cast<E*>(to.elements) + row * to.element_stride + first, elements, count * sizeof(E));
}

template <typename E>
void product(const void* a, std::int64_t row_stride, std::int64_t rows, std::int64_t taps,
             std::int64_t tap_stride, std::int64_t depth, const void* panels, std::int64_t columns,
             const Finish& finish) {
  const auto* panel = static_cast<const E*>(panels);
  float sums[kTileRows * kPanelColumns], bias[kPanelColumns];
  for (std::int64_t first = 0; first < columns;
       first += kPanelColumns, panel += taps * depth * kPanelColumns) {
    const std::int64_t count = columns - first < kPanelColumns ? columns - first : kPanelColumns;
    for (std::int64_t n = 0; n < kPanelColumns; ++n) {
      bias[n] = finish.bias == nullptr || n >= count ? 0.0f : finish.bias[first + n];
    }
    for (std::int64_t m = 0; m < rows; m += kTileRows) {
      const std::int64_t some = rows - m < kTileRows ? rows - m : kTileRows;
      tile_of_rows<kTileRows>(some, static_cast<const E*>(a) + m * row_stride, row_stride, taps, tap_stride,
                              depth, panel, sums);
      for (std::int64_t i = 0; i < some; ++i)
        finish_row<E>(sums + i * kPanelColumns, bias, count, m + i, first, finish);
    }
  }
}

inline std::int64_t rounded(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// Keys as a weight: its outputs are keys, its depth a key's width; values: its outputs are a value's width.
inline void pack_key(const float* key, std::int64_t width, float* panel) {
  for (std::int64_t k = 0; k < width; ++k) panel[k * kPanelColumns] = key[k];
}
inline void pack_key(const std::uint16_t* key, std::int64_t width, std::uint16_t* panel) {
  for (std::int64_t k = 0; k < width; k += 2)
    std::memcpy(panel + k * kPanelColumns, key + k, 2 * sizeof(*key));
}
inline std::int64_t key_step(const float*) { return 1; }
inline std::int64_t key_step(const std::uint16_t*) { return 2; }
inline void pack_value(const float* value, std::int64_t row, std::int64_t count, float* panel) {
  std::memcpy(panel + row * kPanelColumns, value, static_cast<std::size_t>(count) * sizeof(float));
}
inline void pack_value(const std::uint16_t* value, std::int64_t row, std::int64_t count,
                       std::uint16_t* panel) {
  panel += row / 2 * 2 * kPanelColumns + row % 2;
  for (std::int64_t n = 0; n < count; ++n) panel[2 * n] = value[n];
}

template <typename E>
void attend(const void* q, const void* k, const void* v, std::int64_t stride, std::int64_t n,
            std::int64_t width, void* y, std::int64_t y_stride, float* scratch) {
  const std::int64_t keys = rounded(n, kPanelColumns),
                     value_panels = rounded(width, kPanelColumns) / kPanelColumns;
  auto* key_panels = reinterpret_cast<E*>(scratch);
  E* values = key_panels + keys * width;
  E* weights = values + value_panels * keys * kPanelColumns;
  auto* scores = reinterpret_cast<float*>(weights + kTileRows * keys);
  std::memset(scratch, 0,
              static_cast<std::size_t>((keys * width + value_panels * keys * kPanelColumns) * sizeof(E)));
  for (std::int64_t i = 0; i < n; ++i) {
    const E* key = static_cast<const E*>(k) + i * stride;
    pack_key(key, width,
             key_panels + i / kPanelColumns * kPanelColumns * width + i % kPanelColumns * key_step(key));
    const E* value = static_cast<const E*>(v) + i * stride;
    for (std::int64_t p = 0; p < value_panels; ++p) {
      const std::int64_t first = p * kPanelColumns,
                         count = width - first < kPanelColumns ? width - first : kPanelColumns;
      pack_value(value + first, i, count, values + p * keys * kPanelColumns);
    }
  }
  float sums[kTileRows * kPanelColumns], scale[kTileRows];
  for (std::int64_t m = 0; m < n; m += kTileRows) {
    const std::int64_t rows = n - m < kTileRows ? n - m : kTileRows;
    const E* query = static_cast<const E*>(q) + m * stride;
    for (std::int64_t first = 0; first < keys; first += kPanelColumns) {
      tile_of_rows<kTileRows>(rows, query, stride, 1, 0, width, key_panels + first * width, scores + first,
                              keys);
    }
    for (std::int64_t i = 0; i < rows; ++i)
      scale[i] = 1.0f / softmax_row(scores + i * keys, n, keys, weights + i * keys);
    for (std::int64_t p = 0; p < value_panels; ++p) {
      tile_of_rows<kTileRows>(rows, weights, keys, 1, 0, keys, values + p * keys * kPanelColumns, sums);
      const std::int64_t first = p * kPanelColumns,
                         count = width - first < kPanelColumns ? width - first : kPanelColumns;
      for (std::int64_t i = 0; i < rows; ++i) {
        E* out = static_cast<E*>(y) + (m + i) * y_stride + first;
        E whole[kPanelColumns];
        for (std::int64_t c = 0; c < kPanelColumns; c += kLanes) {
          put(whole + c, mul(load(sums + i * kPanelColumns + c), set1(scale[i])));
        }
        std::memcpy(out, whole, static_cast<std::size_t>(count) * sizeof(E));
      }
    }
  }
}

}  // namespace
}  // namespace innervoice
