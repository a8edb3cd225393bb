// Few rows, as they are, times a quantised weight: codes become float32 in registers and nowhere else.
// Included inside a kernel file, behind its vectors.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/expand.h"
#include "cpu/product_kernels.h"

namespace innervoice {
namespace {

// The numbers of one row of an int8 weight without its scale, which the sum is multiplied with.
struct Int8Numbers {
  static constexpr int kCodesInByte = 1;
  const std::int8_t* codes;
  Int8Numbers(const Weight& w, std::int64_t n, std::int64_t)
      : codes(static_cast<const std::int8_t*>(w.row(n))) {}
  Vec load(std::int64_t k) const { return load_int8(codes + k); }
};

// The numbers of one group of a row of an int4 weight.
template <bool kMinimum>
struct Int4Numbers {
  static constexpr int kCodesInByte = 2;
  const std::uint8_t* codes;
  Int4Group<kMinimum> group;
  Int4Numbers(const Weight& w, std::int64_t n, std::int64_t g)
      : codes(static_cast<const std::uint8_t*>(w.row(n))),
        group(w.group_scale + n * w.num_groups() + g,
              kMinimum ? w.group_minimum + n * w.num_groups() + g : nullptr) {}
  Vec load(std::int64_t k) const { return group.load(codes + k / 2); }
};

// The columns [k, end) of kR rows of a weight and of kM rows of inputs: whole vectors of them.
template <typename Numbers, int kR, int kM, std::size_t... kRows>
inline std::int64_t add_exact(const Weight& w, WeightRows n, std::int64_t g, std::int64_t k, std::int64_t end,
                              const float* x, std::int64_t ldx, Vec (&total)[kM][kR],
                              std::index_sequence<kRows...>) {
  const Numbers rows[kR] = {Numbers(w, n.first + static_cast<std::int64_t>(kRows) * n.step, g)...};
  for (; k + kLanes <= end; k += kLanes) {
    Vec a[kM];
    for (int m = 0; m < kM; ++m) a[m] = load(x + m * ldx + k);
    for (int r = 0; r < kR; ++r) {
      const Vec b = rows[r].load(k);
      for (int m = 0; m < kM; ++m) total[m][r] = fma(a[m], b, total[m][r]);
    }
  }
  return k;
}

template <typename Numbers>
struct ExactBody {
  const Weight& w;
  std::int64_t first;
  const Inputs& x;
  float* y;
  std::int64_t ldy;

  template <int kR, int kM>
  void operator()(WeightRows n, std::int64_t m) const {
    const std::int64_t K = w.columns, span = w.group == 0 ? kLineBytes : w.group;
    const float* from = x.x + m * x.ldx;
    Vec total[kM][kR];
    for (auto& one : total) {
      for (Vec& v : one) v = zero();
    }
    const char* ahead = static_cast<const char*>(w.row(n.first)) + bytes_ahead(kR * w.row_bytes());
    std::int64_t k = 0, fetched = 0;
    for (std::int64_t begin = 0; begin < K; begin += span) {
      const std::int64_t end = begin + span < K ? begin + span : K;
      for (; n.step == 1 && fetched < kR * end / Numbers::kCodesInByte; fetched += kLineBytes)
        prefetch(ahead + fetched);
      k = add_exact<Numbers, kR, kM>(w, n, begin / span, begin, end, from, x.ldx, total,
                                     std::make_index_sequence<kR>());
      if (k < end) add_last<kR, kM>(n, k, end - k, from, total);
    }
    // Summed one by one, so that a row beside others has the bits of the row alone.
    for (int i = 0; i < kM; ++i) {
      for (int r = 0; r < kR; ++r) {
        const float one = sum(total[i][r]);
        const std::int64_t row = n.first + r * n.step;
        y[(m + i) * ldy + row - first] = Numbers::kCodesInByte == 2 ? one : one * w.scale[row];
      }
    }
  }

  // Columns that do not fill a vector, with zeros behind them.
  template <int kR, int kM>
  void add_last(WeightRows n, std::int64_t k, std::int64_t count, const float* from,
                Vec (&total)[kM][kR]) const {
    for (int r = 0; r < kR; ++r) {
      float numbers[kLanes] = {};
      const std::int64_t row = n.first + r * n.step;
      for (std::int64_t i = 0; i < count; ++i) {
        numbers[i] = Numbers::kCodesInByte == 2
                         ? expand_code(w, row, k + i)
                         : static_cast<float>(static_cast<const std::int8_t*>(w.row(row))[k + i]);
      }
      for (int m = 0; m < kM; ++m) {
        const Tail<float, kLanes> tail(from + m * x.ldx + k, count);
        total[m][r] = fma(load(tail.codes), load(numbers), total[m][r]);
      }
    }
  }
};

inline void product_exact(const Weight& w, std::int64_t first, std::int64_t last, const Inputs& x,
                          std::int64_t M, float* y, std::int64_t ldy) {
  if (w.kind == WeightKind::kInt8) {
    cover(first, last, M, ExactBody<Int8Numbers>{w, first, x, y, ldy});
  } else if (w.group_minimum == nullptr) {
    cover(first, last, M, ExactBody<Int4Numbers<false>>{w, first, x, y, ldy});
  } else {
    cover(first, last, M, ExactBody<Int4Numbers<true>>{w, first, x, y, ldy});
  }
}

}  // namespace
}  // namespace innervoice
