// What stands between the products: norm and activation. Included inside a kernel file, behind its vectors.
#pragma once

#include <cmath>
#include <cstdint>

namespace innervoice {
namespace {

// exp x, within 2 units in the last place; what is below -87 gives about 1e-38. Cephes' polynomial of degree
// 5 on
// [-ln 2 / 2, ln 2 / 2].
inline Vec exp(const Vec& given) {
  const Vec x = max(min(given, set1(88.0f)), set1(-87.0f));
  const Vec n = round_to_whole(mul(x, set1(1.44269504088896341f)));
  const Vec r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), x));
  Vec p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  return scale_by_power(fma(mul(p, r), r, add(r, set1(1.0f))), n);
}

inline void rms_norm(const float* x, const float* w, float eps, std::int64_t D, float* y) {
  Vec squares = zero();
  std::int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    const Vec one = load(x + d);
    squares = fma(one, one, squares);
  }
  float total = sum(squares);
  for (; d < D; ++d) total += x[d] * x[d];
  const float factor = 1.0f / std::sqrt(total / static_cast<float>(D) + eps);
  for (d = 0; d + kLanes <= D; d += kLanes) store(y + d, mul(mul(load(x + d), set1(factor)), load(w + d)));
  for (; d < D; ++d) y[d] = x[d] * factor * w[d];
}

inline void silu_mul(const float* gate, const float* up, std::int64_t count, float* y) {
  for (std::int64_t i = 0; i < count; i += kLanes) {
    float g[kLanes] = {}, u[kLanes] = {};
    const std::int64_t n = count - i < kLanes ? count - i : kLanes;
    if (n < kLanes) {
      for (std::int64_t k = 0; k < n; ++k) g[k] = gate[i + k], u[k] = up[i + k];
    }
    const Vec a = n < kLanes ? load(g) : load(gate + i), b = n < kLanes ? load(u) : load(up + i);
    const Vec result = div(mul(a, b), add(set1(1.0f), exp(mul(a, set1(-1.0f)))));
    store(n < kLanes ? g : y + i, result);
    if (n < kLanes) {
      for (std::int64_t k = 0; k < n; ++k) y[i + k] = g[k];
    }
  }
}

}  // namespace
}  // namespace innervoice
