// The blocked product: panels of the weight, and tiles that stay in registers. Included inside a kernel file
// that has set kTileRows and kPanelVectors.
#pragma once

#include <cstdint>

#include "cpu/expand.h"

namespace innervoice {
namespace {

constexpr std::int64_t kPanelColumns = kPanelVectors * kLanes;

inline void pack(const Weight& w, std::int64_t first, std::int64_t count, std::int64_t begin,
                 std::int64_t depth, float* rows, float* panel) {
  const std::int64_t stride = (depth + 15) / 16 * 16;
  for (std::int64_t n = 0; n < count; ++n) expand(w, first + n, begin, depth, rows + n * stride);
  for (std::int64_t n = count; n < kPanelColumns; ++n) {
    for (std::int64_t k = 0; k < depth; ++k) rows[n * stride + k] = 0.0f;
  }
  for (std::int64_t n = 0; n < kPanelColumns; n += kLanes) {
    std::int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes)
      transpose(rows + n * stride + k, stride, panel + k * kPanelColumns + n, kPanelColumns);
    for (; k < depth; ++k) {
      for (std::int64_t i = 0; i < kLanes; ++i) panel[k * kPanelColumns + n + i] = rows[(n + i) * stride + k];
    }
  }
}

inline void square_sums(const float* panel, std::int64_t depth, float* sums, bool accumulate) {
  Vec total[kPanelVectors];
  for (int v = 0; v < kPanelVectors; ++v) total[v] = zero();
  for (std::int64_t k = 0; k < depth; ++k, panel += kPanelColumns) {
    for (int v = 0; v < kPanelVectors; ++v) {
      const Vec x = load(panel + v * kLanes);
      total[v] = fma(x, x, total[v]);
    }
  }
  for (int v = 0; v < kPanelVectors; ++v) {
    float* y = sums + v * kLanes;
    store(y, accumulate ? add(load(y), total[v]) : total[v]);
  }
}

constexpr std::int64_t kChain =
    64;  // products that are summed one after another: what a sum's error grows with

template <int kRows>
inline void tile_of(const float* a, std::int64_t lda, const float* panel, std::int64_t depth, float* c,
                    std::int64_t ldc, bool accumulate) {
  for (std::int64_t begin = 0; begin < depth || begin == 0; begin += kChain) {
    const std::int64_t end = begin + kChain < depth ? begin + kChain : depth;
    Vec total[kRows][kPanelVectors];
    for (int m = 0; m < kRows; ++m) {
      for (int v = 0; v < kPanelVectors; ++v) total[m][v] = zero();
    }
    for (std::int64_t k = begin; k < end; ++k, panel += kPanelColumns) {
      Vec b[kPanelVectors];
      for (int v = 0; v < kPanelVectors; ++v) b[v] = load(panel + v * kLanes);
      for (int m = 0; m < kRows; ++m) {
        const Vec x = set1(a[m * lda + k]);
        for (int v = 0; v < kPanelVectors; ++v) total[m][v] = fma(x, b[v], total[m][v]);
      }
    }
    for (int m = 0; m < kRows; ++m) {
      for (int v = 0; v < kPanelVectors; ++v) {
        float* y = c + m * ldc + v * kLanes;
        store(y, accumulate || begin > 0 ? add(load(y), total[m][v]) : total[m][v]);
      }
    }
  }
}

template <int kRows>
inline void tile_of_rows(std::int64_t rows, const float* a, std::int64_t lda, const float* panel,
                         std::int64_t depth, float* c, std::int64_t ldc, bool accumulate) {
  if (rows == kRows) {
    tile_of<kRows>(a, lda, panel, depth, c, ldc, accumulate);
  } else if constexpr (kRows > 1) {
    tile_of_rows<kRows - 1>(rows, a, lda, panel, depth, c, ldc, accumulate);
  }
}

inline void tile(const float* a, std::int64_t lda, std::int64_t rows, const float* panel, std::int64_t depth,
                 float* c, std::int64_t ldc, std::int64_t columns, bool accumulate) {
  if (columns == kPanelColumns) {
    tile_of_rows<kTileRows>(rows, a, lda, panel, depth, c, ldc, accumulate);
    return;
  }
  float whole[kTileRows * kPanelColumns];
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < kPanelColumns; ++n) {
      whole[m * kPanelColumns + n] = accumulate && n < columns ? c[m * ldc + n] : 0.0f;
    }
  }
  tile_of_rows<kTileRows>(rows, a, lda, panel, depth, whole, kPanelColumns, accumulate);
  for (std::int64_t m = 0; m < rows; ++m) {
    for (std::int64_t n = 0; n < columns; ++n) c[m * ldc + n] = whole[m * kPanelColumns + n];
  }
}

}  // namespace
}  // namespace innervoice
