// Products with bfloat16 weights for instructions that multiply float32 only. A word of 32 bits holds two
// weights; each becomes a float32 by one operation, a shift or a mask, so of the inputs those at even places
// stand before those at odd ones. Included inside a kernel file, behind its vectors.
#pragma once

#include "cpu/product_kernels.h"

namespace innervoice {
namespace {

constexpr std::int64_t kPairs = 2 * kLanes;  // columns that two vectors of weights hold

inline std::int64_t bf16_ready_floats(const Weight& w, std::int64_t M) {
  return M * rounded_up(w.columns, kPairs);
}

// x in blocks of kPairs, even places first; 0 past K.
inline void ready_bf16(const Weight& w, Inputs& y, std::int64_t M, float* memory) {
  const std::int64_t K = w.columns, ld = rounded_up(K, kPairs);
  for (std::int64_t m = 0; m < M; ++m) {
    std::int64_t k = 0;
    for (; k + kPairs <= K; k += kPairs) split_pairs(y.x + m * y.ldx + k, memory + m * ld + k);
    if (k == K) continue;
    const Tail<float, kPairs> tail(y.x + m * y.ldx + k, K - k);
    split_pairs(tail.codes, memory + m * ld + k);
  }
  y.x = memory;
  y.ldx = ld;
}

template <int kR, int kM>
inline void add_pairs(const std::uint16_t* w, std::int64_t ldw, const float* x, std::int64_t ldx,
                      Vec (&total)[2][kM][kR]) {
  Vec a[2][kM];
  for (int m = 0; m < kM; ++m) {
    a[0][m] = load(x + m * ldx);
    a[1][m] = load(x + m * ldx + kLanes);
  }
  for (int r = 0; r < kR; ++r) {
    Vec even, odd;
    load_bf16_pairs(w + r * ldw, even, odd);
    for (int m = 0; m < kM; ++m) {
      total[0][m][r] = fma(a[0][m], even, total[0][m][r]);
      total[1][m][r] = fma(a[1][m], odd, total[1][m][r]);
    }
  }
}

template <int kR, int kM>
inline void bf16_rows(const std::uint16_t* w, std::int64_t K, std::int64_t step, const float* x,
                      std::int64_t ldx, float* y, std::int64_t ldy) {
  const std::int64_t ldw = step * K;
  Vec total[2][kM][kR];
  for (auto& chain : total) {
    for (auto& row : chain) {
      for (Vec& one : row) one = zero();
    }
  }
  const char* ahead = reinterpret_cast<const char*>(w) + bytes_ahead(kR * K * 2);
  std::int64_t k = 0;
  for (; k + 2 * kPairs <= K; k += 2 * kPairs) {
    ahead = fetch_lines<kR>(ahead, step);
    add_pairs<kR, kM>(w + k, ldw, x + k, ldx, total);
    add_pairs<kR, kM>(w + k + kPairs, ldw, x + k + kPairs, ldx, total);
  }
  for (; k + kPairs <= K; k += kPairs) add_pairs<kR, kM>(w + k, ldw, x + k, ldx, total);
  if (k < K) {
    std::uint16_t last[kR * kPairs] = {};
    for (int r = 0; r < kR; ++r)
      std::memcpy(last + r * kPairs, w + r * ldw + k, static_cast<std::size_t>(K - k) * 2);
    add_pairs<kR, kM>(last, kPairs, x + k, ldx, total);
  }
  for (int m = 0; m < kM; ++m) {
    for (int r = 0; r < kR; ++r) total[0][m][r] = add(total[0][m][r], total[1][m][r]);
  }
  store_totals<kR, kM>(total[0], nullptr, nullptr, y, ldy, step);
}

struct Bf16Body {
  const Weight& w;
  std::int64_t first;
  const Inputs& x;
  float* y;
  std::int64_t ldy;
  template <int kR, int kM>
  void operator()(WeightRows n, std::int64_t m) const {
    bf16_rows<kR, kM>(static_cast<const std::uint16_t*>(w.row(n.first)), w.columns, n.step, x.x + m * x.ldx,
                      x.ldx, y + m * ldy + n.first - first, ldy);
  }
};

inline void product_bf16(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x,
                         std::int64_t M, float* y, std::int64_t ldy) {
  cover(first, last, M, Bf16Body{w, first, x, y, ldy});
}

}  // namespace
}  // namespace innervoice
