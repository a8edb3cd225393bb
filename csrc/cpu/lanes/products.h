// Rows of inputs of 8 bits times a quantised weight in lanes. A lane is a row of the weight: products of a
// block are summed there in whole numbers, blocks in float32 one after another, so that the bits of a result
// depend on its row of inputs and its row of the weight alone. Included inside a kernel file, behind its
// vectors and lanes.
#pragma once

#include <cstdint>

#include "cpu/lanes/inputs.h"

namespace innervoice {
namespace {

constexpr int kVectorsOfPanel = static_cast<int>(kLaneRows) / kLanes;
constexpr std::int64_t kBytesAhead = 4096;  // that weights are fetched before they are read
constexpr std::int64_t kLineBytes = 64;
constexpr std::int64_t kFewRows = 16;                // of inputs that are always taken together
constexpr std::int64_t kStepBytes = 64;              // of four columns of int8, eight of int4
constexpr std::int64_t kLaneBlockBytes = 256 << 10;  // of inputs that are multiplied with all panels

// kV vectors of a panel's lanes times kM rows of inputs.
template <int kV, int kM>
struct LaneTile {
  Ints sums[kM][kV];
  Vec total[kM][kV];

  LaneTile() {
    for (auto& row : total) {
      for (Vec& one : row) one = zero();
    }
  }

  void add_int8(const std::uint8_t* w, const LaneInputs& x, std::int64_t row, std::int64_t block) {
    const std::int8_t* a = x.codes + (row * x.blocks + block) * kLaneColumns;
    const std::int64_t ld = x.blocks * kLaneColumns;
    for (int m = 0; m < kM; ++m) {
      for (int v = 0; v < kV; ++v) sums[m][v] = begin_signed(x.start + (row + m) * x.blocks + block);
    }
    for (std::int64_t k = 0; k < kLaneColumns; k += 4) {
      Signed codes[kV];
      for (int v = 0; v < kV; ++v) codes[v] = load_signed(w + k / 4 * kStepBytes + v * 4 * kLanes);
      for (int m = 0; m < kM; ++m) {
        const Bytes four = spread_four(a + m * ld + k);
        for (int v = 0; v < kV; ++v) sums[m][v] = dot_signed(sums[m][v], codes[v], four);
      }
    }
  }

  void add_int4(const std::uint8_t* w, const LaneInputs& x, std::int64_t row, std::int64_t block) {
    const std::int8_t* a = x.codes + (row * x.blocks + block) * kLaneColumns;
    const std::int64_t ld = x.blocks * kLaneColumns;
    Nibbles some[kM][kV];
    for (int m = 0; m < kM; ++m) {
      for (int v = 0; v < kV; ++v) some[m][v] = begin_nibbles(x.start + (row + m) * x.blocks + block);
    }
    for (std::int64_t k = 0; k < kLaneColumns; k += 8) {
      Bytes low[kV], high[kV];
      for (int v = 0; v < kV; ++v)
        split(load_bytes(w + k / 8 * kStepBytes + v * 4 * kLanes), low[v], high[v]);
      for (int m = 0; m < kM; ++m) {
        const Bytes first = spread_four(a + m * ld + k), second = spread_four(a + m * ld + k + 4);
        for (int v = 0; v < kV; ++v) {
          some[m][v] = dot_nibbles(some[m][v], low[v], first);
          some[m][v] = dot_nibbles(some[m][v], high[v], second);
        }
      }
    }
    for (int m = 0; m < kM; ++m) {
      for (int v = 0; v < kV; ++v)
        sums[m][v] = end_nibbles(some[m][v], x.start + (row + m) * x.blocks + block);
    }
  }

  // y += scale of the block times its sums; kIsFirst: y is not read.
  template <bool kIsFirst>
  void scale_block(const LaneInputs& x, std::int64_t row, std::int64_t block, Vec (&y)[kM][kV]) {
    for (int m = 0; m < kM; ++m) {
      const Vec scale = set1(x.scale[(row + m) * x.blocks + block]);
      for (int v = 0; v < kV; ++v) {
        const Vec one = mul(scale, to_floats(sums[m][v]));
        y[m][v] = kIsFirst ? one : add(y[m][v], one);
      }
    }
  }

  void store_rows(float* y, const float* row_scale) const {
    for (int m = 0; m < kM; ++m) {
      for (int v = 0; v < kV; ++v) {
        const Vec one = row_scale == nullptr ? total[m][v] : mul(total[m][v], load(row_scale + v * kLanes));
        store(y + m * kLaneRows + v * kLanes, one);
      }
    }
  }
};

template <int kBlocks, bool kMinimum>
struct Int4Lanes {
  static constexpr std::int64_t kBlockBytes = kLaneRows * kLaneColumns / 2;

  template <int kV, int kM>
  static void take(const std::uint8_t* codes, const LaneInputs& x, std::int64_t row, std::int64_t block,
                   LaneTile<kV, kM>& tile) {
    const std::uint8_t* from = codes + block * kBlockBytes;
    for (std::int64_t i = 0; i < kBlockBytes; i += kLineBytes) prefetch(from + kBytesAhead + i);
    tile.add_int4(from, x, row, block);
  }

  template <int kV, int kM>
  static void run(const Weight& w, std::int64_t panel, int v, const LaneInputs& x, std::int64_t row,
                  float* y) {
    const std::int64_t groups = w.num_groups();
    const auto* codes = static_cast<const std::uint8_t*>(w.data) + panel * w.panel_bytes() + v * 4 * kLanes;
    const std::uint16_t* scales = w.group_scale + panel * groups * kLaneRows + v * kLanes;
    const std::uint16_t* minima =
        kMinimum ? w.group_minimum + panel * groups * kLaneRows + v * kLanes : nullptr;
    LaneTile<kV, kM> tile;
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t begin = g * kBlocks, end = begin + kBlocks < x.blocks ? begin + kBlocks : x.blocks;
      Vec part[kM][kV];
      take<kV, kM>(codes, x, row, begin, tile);
      tile.template scale_block<true>(x, row, begin, part);
      for (std::int64_t b = begin + 1; b < end; ++b) {
        take<kV, kM>(codes, x, row, b, tile);
        tile.template scale_block<false>(x, row, b, part);
      }
      for (int i = 0; i < kV; ++i) {
        const Vec scale = load_halves(scales + g * kLaneRows + i * kLanes);
        for (int m = 0; m < kM; ++m) tile.total[m][i] = add(tile.total[m][i], mul(scale, part[m][i]));
        if constexpr (kMinimum) {
          const Vec minimum = load_halves(minima + g * kLaneRows + i * kLanes);
          for (int m = 0; m < kM; ++m) {
            const Vec sum = set1(x.sums[(row + m) * x.groups + g]);
            tile.total[m][i] = add(tile.total[m][i], mul(minimum, sum));
          }
        }
      }
    }
    tile.store_rows(y, nullptr);
  }
};

struct Int8Lanes {
  template <int kV, int kM>
  static void run(const Weight& w, std::int64_t panel, int v, const LaneInputs& x, std::int64_t row,
                  float* y) {
    constexpr std::int64_t kBlockBytes = kLaneRows * kLaneColumns;
    const auto* codes = static_cast<const std::uint8_t*>(w.data) + panel * w.panel_bytes() + v * 4 * kLanes;
    LaneTile<kV, kM> tile;
    for (std::int64_t b = 0; b < x.blocks; ++b) {
      const std::uint8_t* from = codes + b * kBlockBytes;
      for (std::int64_t i = 0; i < kBlockBytes; i += kLineBytes) prefetch(from + kBytesAhead + i);
      tile.add_int8(from, x, row, b);
      tile.template scale_block<false>(x, row, b, tile.total);
    }
    tile.store_rows(y, w.scale + panel * kLaneRows + v * kLanes);
  }
};

// Rows [m, m + kM) of inputs times a panel; y points to the panel's first column that is wanted.
template <typename Lanes, int kM>
inline void panel_of_rows(const Weight& w, std::int64_t panel, std::int64_t begin, std::int64_t end,
                          const LaneInputs& x, std::int64_t row, float* y, std::int64_t ldy) {
  alignas(64) float made[kM][kLaneRows];
  constexpr int kV = kM <= kLaneVectorsOfRows ? kVectorsOfPanel : 1;
  for (int v = 0; v < kVectorsOfPanel; v += kV)
    Lanes::template run<kV, kM>(w, panel, v, x, row, made[0] + v * kLanes);
  for (int m = 0; m < kM; ++m)
    std::memcpy(y + m * ldy, made[m] + begin, static_cast<std::size_t>(end - begin) * sizeof(float));
}

template <typename Lanes>
inline void cover_lanes(const Weight& w, std::int64_t first, std::int64_t last, const LaneInputs& x,
                        std::int64_t M, float* y, std::int64_t ldy) {
  const std::int64_t fitting =
      kLaneBlockBytes / (x.blocks * kLaneColumns + 1) / kLaneTileRows * kLaneTileRows;
  const std::int64_t step = fitting < kFewRows ? kFewRows : fitting;
  for (std::int64_t top = 0; top < M; top += step) {
    const std::int64_t bottom = top + step < M ? top + step : M;
    for (std::int64_t n = first; n < last;) {
      const std::int64_t panel = n / kLaneRows, begin = n % kLaneRows;
      const std::int64_t end = last - panel * kLaneRows < kLaneRows ? last - panel * kLaneRows : kLaneRows;
      float* to = y + n - first;
      std::int64_t m = top;
      for (; m + kLaneTileRows <= bottom; m += kLaneTileRows)
        panel_of_rows<Lanes, kLaneTileRows>(w, panel, begin, end, x, m, to + m * ldy, ldy);
      for (; m + 2 <= bottom; m += 2) panel_of_rows<Lanes, 2>(w, panel, begin, end, x, m, to + m * ldy, ldy);
      for (; m < bottom; ++m) panel_of_rows<Lanes, 1>(w, panel, begin, end, x, m, to + m * ldy, ldy);
      n += end - begin;
    }
  }
}

template <int kBlocks>
inline void cover_int4_lanes(const Weight& w, std::int64_t first, std::int64_t last, const LaneInputs& x,
                             std::int64_t M, float* y, std::int64_t ldy) {
  if (w.group_minimum == nullptr) {
    cover_lanes<Int4Lanes<kBlocks, false>>(w, first, last, x, M, y, ldy);
  } else {
    cover_lanes<Int4Lanes<kBlocks, true>>(w, first, last, x, M, y, ldy);
  }
}

inline void product_in_lanes(const Weight& w, std::int64_t first, std::int64_t last, const LaneInputs& x,
                             std::int64_t M, float* y, std::int64_t ldy) {
  if (w.kind == WeightKind::kInt8) return cover_lanes<Int8Lanes>(w, first, last, x, M, y, ldy);
  if (w.group == 32) cover_int4_lanes<1>(w, first, last, x, M, y, ldy);
  if (w.group == 64) cover_int4_lanes<2>(w, first, last, x, M, y, ldy);
  if (w.group == 128) cover_int4_lanes<4>(w, first, last, x, M, y, ldy);
}

constexpr LaneKernels kLanesTable = {ready_in_lanes, product_in_lanes};

}  // namespace
}  // namespace innervoice
