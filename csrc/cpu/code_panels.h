// Many rows times a quantised weight: a few rows of the weight are unpacked to codes of 16 bits, which all
// rows of inputs are then multiplied with. Included inside a kernel file, behind its vectors.
#pragma once

#include <cstdint>

#include "cpu/product_kernels.h"
#include "cpu/ready_kernels.h"

namespace innervoice {
namespace {

constexpr int kTileInputs =
    kLanes == 16 ? 4 : 2;  // with four rows of a weight as many sums as registers hold
constexpr std::int64_t kPanelRows = 8;
constexpr std::int64_t kBlockBytes = 256
                                     << 10;  // of inputs that are multiplied with all panels: half a small L2

// Rows of a weight, their codes in the order of the inputs' codes; of int4 the scales and minima of each span
// in the lanes in which its products are summed.
struct CodePanel {
  std::int16_t* codes;  // [kPanelRows, ld]
  float* scale;         // [kPanelRows, ld_scale]
  float* minimum;
  std::int64_t ld;
  std::int64_t ld_scale;

  static std::int64_t floats(const Weight& w) {
    const std::int64_t block = w.kind == WeightKind::kInt4 ? kInt4Block : kShorts;
    return floats_of_shorts(kPanelRows * rounded_up(w.columns, block)) +
           (w.kind == WeightKind::kInt4 ? 2 * kPanelRows * spans_of(w) * kLanes : 0);
  }

  CodePanel(const Inputs& x, float* memory)
      : codes(reinterpret_cast<std::int16_t*>(memory)),
        scale(memory + floats_of_shorts(kPanelRows * x.ld)),
        minimum(scale + kPanelRows * x.ld_sums),
        ld(x.ld),
        ld_scale(x.ld_sums) {}

  void unpack_int8(const Weight& w, std::int64_t n, std::int64_t r) const {
    const auto* from = static_cast<const std::int8_t*>(w.row(n));
    std::int16_t* to = codes + r * ld;
    std::int64_t k = 0;
    for (; k + kShorts <= w.columns; k += kShorts) store_shorts(to + k, widen(from + k));
    for (; k < ld; ++k) to[k] = k < w.columns ? from[k] : std::int16_t{0};
  }

  template <int kGroups, bool kMinimum>
  void unpack_int4(const Weight& w, std::int64_t n, std::int64_t r) const {
    const auto* from = static_cast<const std::uint8_t*>(w.row(n));
    const std::int64_t bytes = w.row_bytes(), groups = w.num_groups();
    for (std::int64_t k = 0; k < ld; k += kInt4Block) {
      const Shorts packed = k / 2 + kInt4Block / 2 <= bytes
                                ? load_shorts(reinterpret_cast<const std::int16_t*>(from + k / 2))
                                : load_first(from + k / 2, bytes - k / 2);
      std::int16_t* to = codes + r * ld + k;
      store_shorts(to, nibbles<0>(packed));
      store_shorts(to + kShorts, nibbles<1>(packed));
      store_shorts(to + 2 * kShorts, nibbles<2>(packed));
      store_shorts(to + 3 * kShorts, nibbles<3>(packed));
    }
    for (std::int64_t span = 0; span * kLanes < ld_scale; ++span) {
      const std::int64_t g = span * kGroups, place = r * ld_scale + span * kLanes;
      store(scale + place, spread_halves<kGroups>(w.group_scale + n * groups + g, groups - g));
      if constexpr (kMinimum)
        store(minimum + place, spread_halves<kGroups>(w.group_minimum + n * groups + g, groups - g));
    }
  }
};

// kR rows of a panel times kM rows of inputs. The sums run as those of few rows do.
template <int kR, int kM>
struct Int8Tile {
  static void run(const Weight& w, std::int64_t n, const CodePanel& panel, std::int64_t r0, const Inputs& x,
                  std::int64_t row, float* y, std::int64_t ldy) {
    const std::int16_t *a = x.codes + row * x.ld, *b = panel.codes + r0 * panel.ld;
    Vec total[kM][kR];
    for (auto& one : total) {
      for (Vec& v : one) v = zero();
    }
    for (std::int64_t begin = 0; begin < x.ld; begin += kIntColumns) {
      const std::int64_t end = begin + kIntColumns < x.ld ? begin + kIntColumns : x.ld;
      Ints part[kM][kR];
      for (auto& one : part) {
        for (Ints& v : one) v = zero_ints();
      }
      for (std::int64_t k = begin; k < end; k += kShorts)
        add_codes<kR, kM>(a + k, x.ld, b + k, panel.ld, part);
      for (int m = 0; m < kM; ++m) {
        for (int r = 0; r < kR; ++r) total[m][r] = add(total[m][r], to_floats(part[m][r]));
      }
    }
    store_totals<kR, kM>(total, x.scale + row, w.scale + n, y, ldy);
  }

  template <int kRows, int kInputs>
  static void add_codes(const std::int16_t* a, std::int64_t lda, const std::int16_t* b, std::int64_t ldb,
                        Ints (&part)[kInputs][kRows]) {
    Shorts weights[kRows];
    for (int r = 0; r < kRows; ++r) weights[r] = load_shorts(b + r * ldb);
    for (int m = 0; m < kInputs; ++m) {
      const Shorts one = load_shorts(a + m * lda);
      for (int r = 0; r < kRows; ++r) part[m][r] = dot(part[m][r], weights[r], one);
    }
  }
};

template <int kR, int kM, int kBlocks, bool kMinimum>
struct Int4Tile {
  static void run(const Weight&, std::int64_t, const CodePanel& panel, std::int64_t r0, const Inputs& x,
                  std::int64_t row, float* y, std::int64_t ldy) {
    const std::int16_t *a = x.codes + row * x.ld, *b = panel.codes + r0 * panel.ld;
    const std::int32_t* sums = x.sums + row * x.ld_sums;
    Vec total[kM][kR];
    for (auto& one : total) {
      for (Vec& v : one) v = zero();
    }
    for (std::int64_t span = 0; span * kLanes < x.ld_sums; ++span) {
      Ints part[kM][kR];
      for (int m = 0; m < kM; ++m) {
        const Ints start = kMinimum ? zero_ints() : load_ints(sums + m * x.ld_sums + span * kLanes);
        for (int r = 0; r < kR; ++r) part[m][r] = start;
      }
      const std::int64_t begin = span * kBlocks * kInt4Block, end = begin + kBlocks * kInt4Block;
      for (std::int64_t k = begin; k < end && k < x.ld; k += kInt4Block) {
        for (int i = 0; i < 4; ++i) {
          Int8Tile<kR, kM>::template add_codes<kR, kM>(a + k + i * kShorts, x.ld, b + k + i * kShorts,
                                                       panel.ld, part);
        }
      }
      const std::int64_t place = r0 * panel.ld_scale + span * kLanes;
      for (int r = 0; r < kR; ++r) {
        const Vec scale = load(panel.scale + place + r * panel.ld_scale);
        for (int m = 0; m < kM; ++m) total[m][r] = fma(scale, to_floats(part[m][r]), total[m][r]);
        if constexpr (kMinimum) {
          const Vec minimum = load(panel.minimum + place + r * panel.ld_scale);
          for (int m = 0; m < kM; ++m) {
            const Vec sum = to_floats(load_ints(sums + m * x.ld_sums + span * kLanes));
            total[m][r] = fma(minimum, sum, total[m][r]);
          }
        }
      }
    }
    store_totals<kR, kM>(total, x.scale + row, nullptr, y, ldy);
  }
};

// All rows of inputs times the `count` rows of a panel, which are those of w from n on; y points to column n.
template <template <int, int> typename Tile>
inline void cover_panel(const Weight& w, std::int64_t n, std::int64_t count, const CodePanel& panel,
                        const Inputs& x, std::int64_t first, std::int64_t last, float* y, std::int64_t ldy) {
  const auto rows = [&](std::int64_t m, auto inputs) {
    constexpr int kM = decltype(inputs)::value;
    std::int64_t r = 0;
    for (; r + 4 <= count; r += 4) Tile<4, kM>::run(w, n + r, panel, r, x, m, y + m * ldy + r, ldy);
    for (; r < count; ++r) Tile<1, kM>::run(w, n + r, panel, r, x, m, y + m * ldy + r, ldy);
  };
  std::int64_t m = first;
  for (; m + kTileInputs <= last; m += kTileInputs) rows(m, std::integral_constant<int, kTileInputs>());
  for (; m < last; ++m) rows(m, std::integral_constant<int, 1>());
}

template <template <int, int> typename Tile, typename Unpack>
inline void product_by_panels(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x,
                              std::int64_t M, float* y, std::int64_t ldy, float* memory, Unpack&& unpack) {
  const CodePanel panel(x, memory);
  const std::int64_t fitting = kBlockBytes / (2 * x.ld + 1) / 4 * 4, block = fitting < 16 ? 16 : fitting;
  for (std::int64_t m = 0; m < M; m += block) {
    for (std::int64_t n = first; n < last; n += kPanelRows) {
      const std::int64_t count = n + kPanelRows < last ? kPanelRows : last - n;
      for (std::int64_t r = 0; r < count; ++r) unpack(panel, n + r, r);
      cover_panel<Tile>(w, n, count, panel, x, m, m + block < M ? m + block : M, y + n - first, ldy);
    }
  }
}

template <int kGroup>
struct Int4Tiles {
  static constexpr int kGroups = kGroup < kInt4Block ? kInt4Block / kGroup : 1;
  static constexpr int kBlocks = kGroup < kInt4Block ? 1 : kGroup / kInt4Block;
  template <int kR, int kM>
  using WithMinimum = Int4Tile<kR, kM, kBlocks, true>;
  template <int kR, int kM>
  using Symmetric = Int4Tile<kR, kM, kBlocks, false>;

  static void run(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x, std::int64_t M,
                  float* y, std::int64_t ldy, float* memory) {
    if (w.group_minimum == nullptr) {
      product_by_panels<Symmetric>(w, first, last, x, M, y, ldy, memory,
                                   [&](const CodePanel& panel, std::int64_t n, std::int64_t r) {
                                     panel.unpack_int4<kGroups, false>(w, n, r);
                                   });
    } else {
      product_by_panels<WithMinimum>(w, first, last, x, M, y, ldy, memory,
                                     [&](const CodePanel& panel, std::int64_t n, std::int64_t r) {
                                       panel.unpack_int4<kGroups, true>(w, n, r);
                                     });
    }
  }
};

inline void product_of_many(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x,
                            std::int64_t M, float* y, std::int64_t ldy, float* memory) {
  if (w.kind == WeightKind::kInt8) {
    product_by_panels<Int8Tile>(
        w, first, last, x, M, y, ldy, memory,
        [&](const CodePanel& panel, std::int64_t n, std::int64_t r) { panel.unpack_int8(w, n, r); });
    return;
  }
  if (w.group == 32) Int4Tiles<32>::run(w, first, last, x, M, y, ldy, memory);
  if (w.group == 64) Int4Tiles<64>::run(w, first, last, x, M, y, ldy, memory);
  if (w.group == 128) Int4Tiles<128>::run(w, first, last, x, M, y, ldy, memory);
}

// Where there are vectors: so many rows have the bits of few.
inline std::int64_t panel_floats(const Weight& w) {
  const bool is_quantised = w.kind == WeightKind::kInt8 || w.kind == WeightKind::kInt4;
  return kIsFused && is_quantised ? CodePanel::floats(w) : 0;
}

}  // namespace
}  // namespace innervoice
