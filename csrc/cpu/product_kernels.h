// Products of few rows with a weight: rows of the weight are read once, in order, a few side by side.
// Included inside a kernel file, behind its vectors.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/half.h"
#include "cpu/kernels.h"

namespace innervoice {
namespace {

constexpr std::int64_t kFloatBlock = 16 * kLanes;
constexpr std::int64_t kInt4Block = 4 * kShorts;  // columns whose codes one vector holds
constexpr std::int64_t kBytesAhead = 4096;
constexpr std::int64_t kLineBytes = 64;
constexpr std::int64_t kIntColumns =
    4096;  // products of codes that 32 bits hold: 4096 / 8 (127 32767) < 2^31

inline std::int64_t rounded_up(std::int64_t count, std::int64_t block) {
  return (count + block - 1) / block * block;
}

// Rows of a weight that are multiplied side by side: first, first + step, first + 2 step, ...
struct WeightRows {
  std::int64_t first;
  std::int64_t step = 1;
};

// How far ahead the weights of a single stream are fetched: whole blocks of rows, in the order of their
// addresses, whatever the order in which rows side by side are read.
inline std::int64_t bytes_ahead(std::int64_t block_bytes) { return rounded_up(kBytesAhead, block_bytes); }

// Streams far apart are left to the processor, which fetches each by itself and is slower where it is told.
// kLines lines from `ahead` on; returns where they end.
template <int kLines, typename Byte>
inline const Byte* fetch_lines(const Byte* ahead, std::int64_t step) {
  if (step != 1) return ahead;
  for (int i = 0; i < kLines; ++i) prefetch(ahead + i * kLineBytes);
  return ahead + kLines * kLineBytes;
}

// Sums of kR x kM pairs from vectors to y, whose columns are `step` apart as the rows of the weight are.
template <int kR, int kM>
inline void store_totals(Vec (&total)[kM][kR], const float* factor, const float* row_scale, float* y,
                         std::int64_t ldy, std::int64_t step = 1) {
  for (int m = 0; m < kM; ++m) {
    float sums[4];
    if constexpr (kR == 4) {
      store_sums(sums, total[m]);
    } else {
      for (int r = 0; r < kR; ++r) sums[r] = sum(total[m][r]);
    }
    for (int r = 0; r < kR; ++r) {
      const float scaled = factor == nullptr ? sums[r] : sums[r] * factor[m];
      y[m * ldy + r * step] = row_scale == nullptr ? scaled : scaled * row_scale[r * step];
    }
  }
}

template <int kR, int kM>
struct FloatProduct {
  // Rows of w are `step` of its rows apart.
  static void run(const float* w, std::int64_t K, std::int64_t step, const float* x, std::int64_t ldx,
                  float* y, std::int64_t ldy) {
    const std::int64_t ldw = step * K;
    constexpr int kChains = kR * kM >= 8 ? 1 : 2;
    Vec total[kChains][kM][kR];
    for (auto& chain : total) {
      for (auto& row : chain) {
        for (Vec& one : row) one = zero();
      }
    }
    const char* ahead =
        reinterpret_cast<const char*>(w) + bytes_ahead(kR * K * static_cast<std::int64_t>(sizeof(float)));
    std::int64_t k = 0;
    for (; k + kChains * kLanes <= K; k += kChains * kLanes) {
      if (k * sizeof(float) % kLineBytes == 0) {
        ahead = fetch_lines<kR>(ahead, step);
      }
      for (int c = 0; c < kChains; ++c) {
        const std::int64_t place = k + c * kLanes;
        Vec a[kM];
        for (int m = 0; m < kM; ++m) a[m] = load(x + m * ldx + place);
        for (int r = 0; r < kR; ++r) {
          const Vec b = load(w + r * ldw + place);
          for (int m = 0; m < kM; ++m) total[c][m][r] = fma(a[m], b, total[c][m][r]);
        }
      }
    }
    if constexpr (kChains == 2) {
      for (int m = 0; m < kM; ++m) {
        for (int r = 0; r < kR; ++r) total[0][m][r] = add(total[0][m][r], total[1][m][r]);
      }
    }
    store_totals<kR, kM>(total[0], nullptr, nullptr, y, ldy, step);
    for (; k < K; ++k) {
      for (int r = 0; r < kR; ++r) {
        for (int m = 0; m < kM; ++m) y[m * ldy + r * step] += x[m * ldx + k] * w[r * ldw + k];
      }
    }
  }
};

// The last codes of a row, with zeros behind them.
template <typename Number, std::int64_t kCount>
struct Tail {
  Number codes[kCount];
  Tail(const Number* from, std::int64_t count) {
    std::memset(codes, 0, sizeof(codes));
    std::memcpy(codes, from, static_cast<std::size_t>(count) * sizeof(Number));
  }
};

template <int kR, int kM>
struct Int8Product {
  static void run(const Weight& w, WeightRows n, const Inputs& x, std::int64_t row, float* y,
                  std::int64_t ldy) {
    const std::int64_t K = w.columns, ldw = n.step * K;
    const auto* codes = static_cast<const std::int8_t*>(w.row(n.first));
    const std::int16_t* a = x.codes + row * x.ld;
    const std::int8_t* ahead = codes + bytes_ahead(kR * K);
    Vec total[kM][kR];
    for (auto& one : total) {
      for (Vec& v : one) v = zero();
    }
    for (std::int64_t begin = 0; begin < K || begin == 0; begin += kIntColumns) {
      const std::int64_t end = begin + kIntColumns < K ? begin + kIntColumns : K;
      Ints part[kM][kR];
      for (auto& one : part) {
        for (Ints& v : one) v = zero_ints();
      }
      std::int64_t k = begin;
      for (; k + kShorts <= end; k += kShorts) {
        if (k % kLineBytes == 0) {
          ahead = fetch_lines<kR>(ahead, n.step);
        }
        for (int r = 0; r < kR; ++r) {
          const Shorts b = widen(codes + r * ldw + k);
          for (int m = 0; m < kM; ++m) part[m][r] = dot(part[m][r], b, load_shorts(a + m * x.ld + k));
        }
      }
      if (k < end) {
        for (int r = 0; r < kR; ++r) {
          const Tail<std::int8_t, kShorts> tail(codes + r * ldw + k, end - k);
          const Shorts b = widen(tail.codes);
          for (int m = 0; m < kM; ++m) part[m][r] = dot(part[m][r], b, load_shorts(a + m * x.ld + k));
        }
      }
      for (int m = 0; m < kM; ++m) {
        for (int r = 0; r < kR; ++r) total[m][r] = add(total[m][r], to_floats(part[m][r]));
      }
    }
    store_totals<kR, kM>(total, x.scale + row, w.scale + n.first, y, ldy, n.step);
  }
};

// kGroups scales for each kBlocks vectors of codes.
template <int kR, int kM, int kGroups, int kBlocks, bool kMinimum>
struct Int4Product {
  static void run(const Weight& w, WeightRows n, const Inputs& x, std::int64_t row, float* y,
                  std::int64_t ldy) {
    const std::int64_t bytes = w.row_bytes(), groups = w.num_groups(), ldw = n.step * bytes;
    const std::int64_t ld_scales = n.step * groups;
    const auto* codes = static_cast<const std::uint8_t*>(w.row(n.first));
    const std::uint8_t* ahead = codes + bytes_ahead(kR * bytes);
    const std::uint16_t* scales = w.group_scale + n.first * groups;
    const std::uint16_t* minima = kMinimum ? w.group_minimum + n.first * groups : nullptr;
    const std::int16_t* a = x.codes + row * x.ld;
    const std::int32_t* sums = x.sums + row * x.ld_sums;
    const std::int64_t blocks = (w.columns + kInt4Block - 1) / kInt4Block, whole = bytes / (kInt4Block / 2);
    Vec total[kM][kR];
    for (auto& one : total) {
      for (Vec& v : one) v = zero();
    }
    for (std::int64_t span = 0; span * kBlocks < blocks; ++span) {
      Ints part[kM][kR];
      for (int m = 0; m < kM; ++m) {
        const Ints start = kMinimum ? zero_ints() : load_ints(sums + m * x.ld_sums + span * kLanes);
        for (int r = 0; r < kR; ++r) part[m][r] = start;
      }
      for (std::int64_t block = span * kBlocks; block < blocks && block < (span + 1) * kBlocks; ++block) {
        if (block * (kInt4Block / 2) % kLineBytes == 0) {
          ahead = fetch_lines<kR>(ahead, n.step);
        }
        for (int r = 0; r < kR; ++r) {
          const std::uint8_t* place = codes + r * ldw + block * (kInt4Block / 2);
          const Shorts packed = block < whole ? load_shorts(reinterpret_cast<const std::int16_t*>(place))
                                              : load_first(place, bytes % (kInt4Block / 2));
          const Shorts b0 = nibbles<0>(packed), b1 = nibbles<1>(packed), b2 = nibbles<2>(packed),
                       b3 = nibbles<3>(packed);
          for (int m = 0; m < kM; ++m) {
            const std::int16_t* from = a + m * x.ld + block * kInt4Block;
            Ints one = dot(part[m][r], b0, load_shorts(from));
            one = dot(one, b1, load_shorts(from + kShorts));
            one = dot(one, b2, load_shorts(from + 2 * kShorts));
            part[m][r] = dot(one, b3, load_shorts(from + 3 * kShorts));
          }
        }
      }
      const std::int64_t g = span * kGroups;
      for (int r = 0; r < kR; ++r) {
        const Vec scale = spread_halves<kGroups>(scales + r * ld_scales + g, groups - g);
        for (int m = 0; m < kM; ++m) total[m][r] = fma(scale, to_floats(part[m][r]), total[m][r]);
        if constexpr (kMinimum) {
          const Vec minimum = spread_halves<kGroups>(minima + r * ld_scales + g, groups - g);
          for (int m = 0; m < kM; ++m) {
            const Vec sum = to_floats(load_ints(sums + m * x.ld_sums + span * kLanes));
            total[m][r] = fma(minimum, sum, total[m][r]);
          }
        }
      }
    }
    store_totals<kR, kM>(total, x.scale + row, nullptr, y, ldy, n.step);
  }
};

// Calls body<R, M>(rows of w, first row of x) so that all N x M pairs are covered: blocks of kR x kM and
// what is left.
template <int kM, typename Body>
inline void rows_of_inputs(std::int64_t first, std::int64_t last, std::int64_t m, Body&& body) {
  constexpr int kR = kM == 1 ? 4 : kM == 2 ? 2 : 1;
  std::int64_t n = first;
  for (; n + kR <= last; n += kR) body.template operator()<kR, kM>(WeightRows{n}, m);
  for (; n < last; ++n) body.template operator()<1, kM>(WeightRows{n}, m);
}

constexpr std::int64_t kRowsKept = 16;  // rows of w that stay in the first cache for all rows of x

template <typename Body>
inline void cover_in_order(std::int64_t first, std::int64_t last, std::int64_t M, Body&& body) {
  for (std::int64_t n = first; n < last; n += kRowsKept) {
    const std::int64_t end = n + kRowsKept < last ? n + kRowsKept : last;
    std::int64_t m = 0;
    for (; m + 4 <= M; m += 4) rows_of_inputs<4>(n, end, m, body);
    if (M - m == 3) rows_of_inputs<3>(n, end, m, body);
    if (M - m == 2) rows_of_inputs<2>(n, end, m, body);
    if (M - m == 1) rows_of_inputs<1>(n, end, m, body);
  }
}

constexpr std::int64_t kStreamedRows = 2;  // of inputs: more of them are bound by products

// Rows [first, last) of w are cut into kStreams parts that are read side by side: memory and the processor's
// prefetchers serve several streams faster than one where they lie in pages of their own.
template <typename Body>
inline void cover(std::int64_t first, std::int64_t last, std::int64_t M, Body&& body) {
  const std::int64_t step = (last - first) / kStreams;
  if (kStreams > 1 && step > 1 && M <= kStreamedRows) {
    for (std::int64_t n = first; n < first + step; ++n) {
      if (M == 1) {
        body.template operator()<kStreams, 1>(WeightRows{n, step}, 0);
      } else {
        for (int s = 0; s + 2 <= kStreams; s += 2)
          body.template operator()<2, 2>(WeightRows{n + s * step, step}, 0);
      }
    }
    first += kStreams * step;
  }
  cover_in_order(first, last, M, body);
}

struct FloatBody {
  const Weight& w;
  std::int64_t first;
  const Inputs& x;
  float* y;
  std::int64_t ldy;
  template <int kR, int kM>
  void operator()(WeightRows n, std::int64_t m) const {
    FloatProduct<kR, kM>::run(static_cast<const float*>(w.row(n.first)), w.columns, n.step, x.x + m * x.ldx,
                              x.ldx, y + m * ldy + n.first - first, ldy);
  }
};

struct Int8Body {
  const Weight& w;
  std::int64_t first;
  const Inputs& x;
  float* y;
  std::int64_t ldy;
  template <int kR, int kM>
  void operator()(WeightRows n, std::int64_t m) const {
    Int8Product<kR, kM>::run(w, n, x, m, y + m * ldy + n.first - first, ldy);
  }
};

template <int kGroups, int kBlocks, bool kMinimum>
struct Int4Body {
  const Weight& w;
  std::int64_t first;
  const Inputs& x;
  float* y;
  std::int64_t ldy;
  template <int kR, int kM>
  void operator()(WeightRows n, std::int64_t m) const {
    Int4Product<kR, kM, kGroups, kBlocks, kMinimum>::run(w, n, x, m, y + m * ldy + n.first - first, ldy);
  }
};

template <int kGroup>
inline void product_int4(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x,
                         std::int64_t M, float* y, std::int64_t ldy) {
  constexpr int kGroups = kGroup < kInt4Block ? kInt4Block / kGroup : 1;
  constexpr int kBlocks = kGroup < kInt4Block ? 1 : kGroup / kInt4Block;
  if (w.group_minimum == nullptr) {
    cover(first, last, M, Int4Body<kGroups, kBlocks, false>{w, first, x, y, ldy});
  } else {
    cover(first, last, M, Int4Body<kGroups, kBlocks, true>{w, first, x, y, ldy});
  }
}

}  // namespace
}  // namespace innervoice
