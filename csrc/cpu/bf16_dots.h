// Products with bfloat16 weights by AVX512-BF16: inputs rounded to bfloat16, sums in float32. Included inside
// its kernel file, behind the vectors.
#pragma once

#include "cpu/avx512.h"
#include "cpu/product_kernels.h"

namespace innervoice {
namespace {

inline std::int64_t bf16_ready_floats(const Weight& w, std::int64_t M) {
  return (M * rounded_up(w.columns, kShorts) + 1) / 2;
}

inline void ready_bf16(const Weight& w, Inputs& y, std::int64_t M, float* memory) {
  const std::int64_t K = w.columns;
  auto* bf16 = reinterpret_cast<std::uint16_t*>(memory);
  y.ld = rounded_up(K, kShorts);
  for (std::int64_t m = 0; m < M; ++m) {
    for (std::int64_t k = 0; k < K; ++k) bf16[m * y.ld + k] = bf16_of_float(y.x[m * y.ldx + k]);
    for (std::int64_t k = K; k < y.ld; ++k) bf16[m * y.ld + k] = 0;
  }
  y.bf16 = bf16;
}

inline __m512bh load_pairs(const std::uint16_t* x, __mmask32 there) {
  return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(there, x));
}

// Rows of the weight one after another: so they are one stream, which the processor fetches ahead; the sums
// of a row and the next overlap.
template <int kR, int kM>
struct Bf16Product {
  static void run(const std::uint16_t* w, std::int64_t K, const std::uint16_t* x, std::int64_t ldx, float* y,
                  std::int64_t ldy) {
    Vec total[kM][kR];
    for (auto& one : total) {
      for (Vec& v : one) v = zero();
    }
    for (int r = 0; r < kR; ++r) {
      const std::uint16_t* row = w + r * K;
      for (std::int64_t k = 0; k < K; k += kShorts) {
        const __mmask32 there = K - k >= kShorts ? ~__mmask32{0} : (__mmask32{1} << (K - k)) - 1;
        const __m512bh b = load_pairs(row + k, there);
        for (int m = 0; m < kM; ++m)
          total[m][r] = _mm512_dpbf16_ps(total[m][r], load_pairs(x + m * ldx + k, there), b);
      }
    }
    store_totals<kR, kM>(total, nullptr, nullptr, y, ldy);
  }
};

struct Bf16Body {
  const Weight& w;
  std::int64_t first;
  const Inputs& x;
  float* y;
  std::int64_t ldy;
  template <int kR, int kM>
  void operator()(WeightRows n, std::int64_t m) const {
    static_assert(kStreams == 1);
    const auto* weights = static_cast<const std::uint16_t*>(w.row(n.first));
    Bf16Product<kR, kM>::run(weights, w.columns, x.bf16 + m * x.ld, x.ld, y + m * ldy + n.first - first, ldy);
  }
};

inline void product_bf16(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x,
                         std::int64_t M, float* y, std::int64_t ldy) {
  cover(first, last, M, Bf16Body{w, first, x, y, ldy});
}

}  // namespace
}  // namespace innervoice
