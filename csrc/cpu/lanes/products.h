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
constexpr std::int64_t kFewRows = 16;            // of inputs that are always taken together
constexpr std::int64_t kStreamedRows = 1;        // of inputs for which a weight is read as several streams
constexpr std::int64_t kLeastStream = 12 << 10;  // bytes of a stream that repay its beginning
constexpr std::int64_t kStepBytes = 64;          // of four columns of int8, eight of int4
constexpr std::int64_t kLaneBlockBytes = 256 << 10;  // of inputs that are multiplied with all panels

// kV vectors of the lanes of each of kP panels times kM rows of inputs. Panels lie `apart` bytes apart;
// vector i is of panel i / kV.
template <int kP, int kV, int kM>
struct LaneTile {
  static constexpr int kN = kP * kV;
  Ints sums[kM][kN];
  Vec total[kM][kN];

  LaneTile() {
    for (auto& row : total) {
      for (Vec& one : row) one = zero();
    }
  }

  // Where vector i of four (int8) or eight columns (int4) stands.
  static const std::uint8_t* place(const std::uint8_t* w, std::int64_t apart, int i) {
    return w + i / kV * apart + i % kV * 4 * kLanes;
  }

  void add_int8(const std::uint8_t* w, std::int64_t apart, const LaneInputs& x, std::int64_t row,
                std::int64_t block) {
    const std::int8_t* a = x.codes + (row * x.blocks + block) * kLaneColumns;
    const std::int64_t ld = x.blocks * kLaneColumns;
    for (int m = 0; m < kM; ++m) {
      for (int i = 0; i < kN; ++i) sums[m][i] = begin_signed(x.start + (row + m) * x.blocks + block);
    }
    // Unrolled, a single row would keep more numbers than there are registers.
#pragma GCC unroll 1
    for (std::int64_t k = 0; k < kLaneColumns; k += 4, w += kStepBytes) {
      if constexpr (kM == 1) {
        const Bytes four = spread_four(a + k);
        for (int i = 0; i < kN; ++i)
          sums[0][i] = dot_signed(sums[0][i], load_signed(place(w, apart, i)), four);
        continue;
      }
      Signed codes[kN];
      for (int i = 0; i < kN; ++i) codes[i] = load_signed(place(w, apart, i));
      for (int m = 0; m < kM; ++m) {
        const Bytes four = spread_four(a + m * ld + k);
        for (int i = 0; i < kN; ++i) sums[m][i] = dot_signed(sums[m][i], codes[i], four);
      }
    }
  }

  void add_int4(const std::uint8_t* w, std::int64_t apart, const LaneInputs& x, std::int64_t row,
                std::int64_t block) {
    const std::int8_t* a = x.codes + (row * x.blocks + block) * kLaneColumns;
    const std::int64_t ld = x.blocks * kLaneColumns;
    Nibbles some[kM][kN];
    for (int m = 0; m < kM; ++m) {
      for (int i = 0; i < kN; ++i) some[m][i] = begin_nibbles(x.start + (row + m) * x.blocks + block);
    }
    // Unrolled, a single row would keep more numbers than there are registers.
#pragma GCC unroll 1
    for (std::int64_t k = 0; k < kLaneColumns; k += 8, w += kStepBytes) {
      if constexpr (kM == 1) {
        const Bytes first = spread_four(a + k), second = spread_four(a + k + 4);
        for (int i = 0; i < kN; ++i) {
          Bytes low, high;
          split(load_bytes(place(w, apart, i)), low, high);
          some[0][i] = dot_nibbles(dot_nibbles(some[0][i], low, first), high, second);
        }
        continue;
      }
      Bytes low[kN], high[kN];
      for (int i = 0; i < kN; ++i) split(load_bytes(place(w, apart, i)), low[i], high[i]);
      for (int m = 0; m < kM; ++m) {
        const Bytes first = spread_four(a + m * ld + k), second = spread_four(a + m * ld + k + 4);
        for (int i = 0; i < kN; ++i) {
          some[m][i] = dot_nibbles(some[m][i], low[i], first);
          some[m][i] = dot_nibbles(some[m][i], high[i], second);
        }
      }
    }
    for (int m = 0; m < kM; ++m) {
      for (int i = 0; i < kN; ++i)
        sums[m][i] = end_nibbles(some[m][i], x.start + (row + m) * x.blocks + block);
    }
  }

  // y += scale of the block times its sums; kIsFirst: y is not read.
  template <bool kIsFirst>
  void scale_block(const LaneInputs& x, std::int64_t row, std::int64_t block, Vec (&y)[kM][kN]) {
    for (int m = 0; m < kM; ++m) {
      const Vec scale = set1(x.scale[(row + m) * x.blocks + block]);
      for (int i = 0; i < kN; ++i) {
        const Vec one = mul(scale, to_floats(sums[m][i]));
        y[m][i] = kIsFirst ? one : add(y[m][i], one);
      }
    }
  }

  // y [kP, kM, kLaneRows]; row_scale of the first panel, those of the next `step` panels on, or null.
  void store_rows(float* y, const float* row_scale, std::int64_t step) const {
    for (int m = 0; m < kM; ++m) {
      for (int i = 0; i < kN; ++i) {
        const int p = i / kV, v = i % kV * kLanes;
        const Vec one =
            row_scale == nullptr ? total[m][i] : mul(total[m][i], load(row_scale + p * step * kLaneRows + v));
        store(y + (p * kM + m) * kLaneRows + v, one);
      }
    }
  }
};

// Panels of a weight that are multiplied side by side: first, first + step, ...
struct Panels {
  std::int64_t first;
  std::int64_t step = 1;
};

// A block's codes are fetched before they are read, but of several streams, which the processor fetches.
template <int kP>
inline void fetch_block(const std::uint8_t* from, std::int64_t bytes) {
  if constexpr (kP > 1) return;
  for (std::int64_t i = 0; i < bytes; i += kLineBytes) prefetch(from + kBytesAhead + i);
}

template <int kBlocks, bool kMinimum>
struct Int4Lanes {
  static constexpr std::int64_t kBlockBytes = kLaneRows * kLaneColumns / 2;

  template <int kP, int kV, int kM>
  static void take(const std::uint8_t* codes, std::int64_t apart, const LaneInputs& x, std::int64_t row,
                   std::int64_t block, LaneTile<kP, kV, kM>& tile) {
    const std::uint8_t* from = codes + block * kBlockBytes;
    fetch_block<kP>(from, kBlockBytes);
    tile.add_int4(from, apart, x, row, block);
  }

  template <int kP, int kV, int kM>
  static void run(const Weight& w, Panels panels, int v, const LaneInputs& x, std::int64_t row, float* y) {
    const std::int64_t groups = w.num_groups(), apart = panels.step * w.panel_bytes();
    const auto* codes =
        static_cast<const std::uint8_t*>(w.data) + panels.first * w.panel_bytes() + v * 4 * kLanes;
    const std::int64_t first = panels.first * groups * kLaneRows + v * kLanes;
    const std::int64_t scales_apart = panels.step * groups * kLaneRows;
    LaneTile<kP, kV, kM> tile;
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t begin = g * kBlocks, end = begin + kBlocks < x.blocks ? begin + kBlocks : x.blocks;
      Vec part[kM][kP * kV];
      take(codes, apart, x, row, begin, tile);
      tile.template scale_block<true>(x, row, begin, part);
      for (std::int64_t b = begin + 1; b < end; ++b) {
        take(codes, apart, x, row, b, tile);
        tile.template scale_block<false>(x, row, b, part);
      }
      for (int i = 0; i < kP * kV; ++i) {
        const std::int64_t place = first + g * kLaneRows + i / kV * scales_apart + i % kV * kLanes;
        const Vec scale = load_halves(w.group_scale + place);
        for (int m = 0; m < kM; ++m) tile.total[m][i] = add(tile.total[m][i], mul(scale, part[m][i]));
        if constexpr (kMinimum) {
          const Vec minimum = load_halves(w.group_minimum + place);
          for (int m = 0; m < kM; ++m) {
            const Vec sum = set1(x.sums[(row + m) * x.groups + g]);
            tile.total[m][i] = add(tile.total[m][i], mul(minimum, sum));
          }
        }
      }
    }
    tile.store_rows(y, nullptr, 0);
  }
};

struct Int8Lanes {
  template <int kP, int kV, int kM>
  static void run(const Weight& w, Panels panels, int v, const LaneInputs& x, std::int64_t row, float* y) {
    constexpr std::int64_t kBlockBytes = kLaneRows * kLaneColumns;
    const std::int64_t apart = panels.step * w.panel_bytes();
    const auto* codes =
        static_cast<const std::uint8_t*>(w.data) + panels.first * w.panel_bytes() + v * 4 * kLanes;
    LaneTile<kP, kV, kM> tile;
    for (std::int64_t b = 0; b < x.blocks; ++b) {
      const std::uint8_t* from = codes + b * kBlockBytes;
      fetch_block<kP>(from, kBlockBytes);
      tile.add_int8(from, apart, x, row, b);
      tile.template scale_block<false>(x, row, b, tile.total);
    }
    tile.store_rows(y, w.scale + panels.first * kLaneRows + v * kLanes, panels.step);
  }
};

// Rows [row, row + kM) of inputs times columns [begin, end) of kP panels; y: where the first panel's begin.
template <typename Lanes, int kP, int kM>
inline void panels_of_rows(const Weight& w, Panels panels, std::int64_t begin, std::int64_t end,
                           const LaneInputs& x, std::int64_t row, float* y, std::int64_t ldy) {
  alignas(64) float made[kP][kM][kLaneRows];
  constexpr int kV = kM <= kLaneVectorsOfRows ? kVectorsOfPanel : 1;
  for (int v = 0; v < kVectorsOfPanel; v += kV)
    Lanes::template run<kP, kV, kM>(w, panels, v, x, row, made[0][0] + v * kLanes);
  for (int p = 0; p < kP; ++p) {
    for (int m = 0; m < kM; ++m) {
      std::memcpy(y + m * ldy + p * panels.step * kLaneRows, made[p][m] + begin,
                  static_cast<std::size_t>(end - begin) * sizeof(float));
    }
  }
}

// Rows [top, bottom) of inputs times columns [begin, end) of kP panels; y: where row 0 and the first panel's
// begin.
template <typename Lanes, int kP>
inline void panels_of_inputs(const Weight& w, Panels panels, std::int64_t begin, std::int64_t end,
                             const LaneInputs& x, std::int64_t top, std::int64_t bottom, float* y,
                             std::int64_t ldy) {
  std::int64_t m = top;
  for (; m + kLaneTileRows <= bottom; m += kLaneTileRows)
    panels_of_rows<Lanes, kP, kLaneTileRows>(w, panels, begin, end, x, m, y + m * ldy, ldy);
  for (; m + 2 <= bottom; m += 2) panels_of_rows<Lanes, kP, 2>(w, panels, begin, end, x, m, y + m * ldy, ldy);
  for (; m < bottom; ++m) panels_of_rows<Lanes, kP, 1>(w, panels, begin, end, x, m, y + m * ldy, ldy);
}

template <typename Lanes>
inline void cover_lanes(const Weight& w, std::int64_t first, std::int64_t last, const LaneInputs& x,
                        std::int64_t M, float* y, std::int64_t ldy) {
  const std::int64_t fitting =
      kLaneBlockBytes / (x.blocks * kLaneColumns + 1) / kLaneTileRows * kLaneTileRows;
  const std::int64_t step = fitting < kFewRows ? kFewRows : fitting;
  for (std::int64_t top = 0; top < M; top += step) {
    const std::int64_t bottom = top + step < M ? top + step : M;
    std::int64_t n = first;
    if constexpr (kStreams > 1) {
      // Whole panels in kStreams parts, side by side.
      const std::int64_t apart = (last - first) / kLaneRows / kStreams, begin = first / kLaneRows;
      if (M <= kStreamedRows && first % kLaneRows == 0 && apart * w.panel_bytes() >= kLeastStream) {
        for (std::int64_t panel = begin; panel < begin + apart; ++panel) {
          panels_of_inputs<Lanes, kStreams>(w, {panel, apart}, 0, kLaneRows, x, top, bottom,
                                            y + panel * kLaneRows - first, ldy);
        }
        n += kStreams * apart * kLaneRows;
      }
    }
    while (n < last) {
      const std::int64_t panel = n / kLaneRows, begin = n % kLaneRows;
      const std::int64_t end = last - panel * kLaneRows < kLaneRows ? last - panel * kLaneRows : kLaneRows;
      panels_of_inputs<Lanes, 1>(w, {panel}, begin, end, x, top, bottom, y + n - first, ldy);
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
