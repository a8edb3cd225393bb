// Products in double, of rows that lie anywhere: where rounding would add up, as in the pitch of a long
// reply. Included inside a kernel file behind its vectors; kTileRows is set.
#pragma once

#include <cstdint>

#include "cpu/voice/kernels.h"

namespace innervoice {
namespace {

constexpr int kDoubleVectors = 2;
constexpr std::int64_t kDoubleColumns = kDoubleVectors * kDoubleLanes;
constexpr std::int64_t kDoubleDepth = 128;  // a piece of a panel that stays in the first cache

// out[m, n] += the products of one tap and k in [begin, end).
template <int kRows>
inline void double_tile(const double* const* rows, std::int64_t begin, std::int64_t end, const double* panel,
                        double* out) {
  Doubles total[kRows][kDoubleVectors];
  const double* a[kRows];
  for (int m = 0; m < kRows; ++m) {
    a[m] = rows[m];
    for (int v = 0; v < kDoubleVectors; ++v) total[m][v] = load(out + m * kDoubleColumns + v * kDoubleLanes);
  }
  for (std::int64_t k = begin; k < end; ++k, panel += kDoubleColumns) {
    Doubles b[kDoubleVectors];
    for (int v = 0; v < kDoubleVectors; ++v) b[v] = load(panel + v * kDoubleLanes);
    for (int m = 0; m < kRows; ++m) {
      const Doubles x = set1(a[m][k]);
      for (int v = 0; v < kDoubleVectors; ++v) total[m][v] = fma(x, b[v], total[m][v]);
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kDoubleVectors; ++v) store(out + m * kDoubleColumns + v * kDoubleLanes, total[m][v]);
  }
}

template <int kRows>
inline void double_tile_of_rows(std::int64_t some, const double* const* rows, std::int64_t begin,
                                std::int64_t end, const double* panel, double* out) {
  if (some == kRows) {
    double_tile<kRows>(rows, begin, end, panel, out);
  } else if constexpr (kRows > 1) {
    double_tile_of_rows<kRows - 1>(some, rows, begin, end, panel, out);
  }
}

inline void double_product(const double* const* rows, std::int64_t count, std::int64_t taps,
                           std::int64_t depth, const double* panels, std::int64_t columns, const double* bias,
                           double* y) {
  double sums[kGathered * kDoubleColumns];
  for (std::int64_t first = 0; first < columns; first += kDoubleColumns) {
    for (std::int64_t m = 0; m < count; ++m) {
      for (std::int64_t n = 0; n < kDoubleColumns; ++n) sums[m * kDoubleColumns + n] = bias[first + n];
    }
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      for (std::int64_t begin = 0; begin < depth; begin += kDoubleDepth) {
        const std::int64_t end = begin + kDoubleDepth < depth ? begin + kDoubleDepth : depth;
        for (std::int64_t m = 0; m < count; m += kTileRows) {
          double_tile_of_rows<kTileRows>(count - m < kTileRows ? count - m : kTileRows,
                                         rows + tap * count + m, begin, end, panels,
                                         sums + m * kDoubleColumns);
        }
        panels += (end - begin) * kDoubleColumns;
      }
    }
    for (std::int64_t m = 0; m < count; ++m) {
      for (std::int64_t n = 0; n < kDoubleColumns; ++n)
        y[m * columns + first + n] = sums[m * kDoubleColumns + n];
    }
  }
}

}  // namespace
}  // namespace innervoice
