// Functions of vectors and rows that the voice needs. Included inside a kernel file behind its vectors.
#pragma once

#include <cstdint>

namespace innervoice {
namespace {

inline Vec sub(Vec a, Vec b) { return fma(set1(-1.0f), b, a); }

// Elements are floats, or bfloat16 in 16 bits, rounded to nearest even.
inline void put(float* elements, Vec x) { store(elements, x); }
#if defined(INNERVOICE_HALVES)
inline void put(std::uint16_t* elements, Vec x) { store_bf16(elements, x); }
#endif

// x - n ln 2.
inline Vec reduced(Vec x, Vec n) { return fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), x)); }

// (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, Cephes's polynomial of expf.
inline Vec exp_rest(Vec r) {
  Vec y = set1(1.9875691500e-4f);
  y = fma(y, r, set1(1.3981999507e-3f));
  y = fma(y, r, set1(8.3334519073e-3f));
  y = fma(y, r, set1(4.1665795894e-2f));
  y = fma(y, r, set1(1.6666665459e-1f));
  return fma(y, r, set1(5.0000001201e-1f));
}

// e^x for x <= 88, with an error of about an ulp; what is too small to be a normal number is 0.
inline Vec exp_of(Vec x) {
  x = max(x, set1(-87.0f));
  const Vec n = round_to_whole(mul(x, set1(1.44269504088896341f)));
  const Vec r = reduced(x, n);
  return scale_by_power(fma(mul(r, r), exp_rest(r), add(r, set1(1.0f))), n);
}

// x above 0, e^x - 1 below, where what is near 0 keeps its digits.
inline Vec elu(Vec x) {
  const Vec low = max(min(x, zero()), set1(-87.0f));
  const Vec n = round_to_whole(mul(low, set1(1.44269504088896341f)));
  const Vec r = reduced(low, n);
  const Vec power = scale_by_power(set1(1.0f), n);
  const Vec less = fma(power, fma(mul(r, r), exp_rest(r), r), sub(power, set1(1.0f)));
  return add(max(zero(), x), less);
}

// x / 2 (1 + erf(x / sqrt 2)); erf z = z p(z^2), p fitted up to |z| = 3.6, from where on erf is 1 as far as
// floats go.
inline Vec gelu(Vec x) {
  const Vec most = set1(3.6f), z = max(min(mul(x, set1(0.70710678118654752f)), most), sub(zero(), most));
  const Vec t = fma(mul(z, z), set1(0.154320988f), set1(-1.0f)), half = mul(x, set1(0.5f));
  const Vec t2 = mul(t, t), t4 = mul(t2, t2);  // by powers of t^4, so that no sum waits long for another
  Vec y = fma(set1(-0.000786003715f), t, set1(0.00247657439f));
  y = fma(y, t4,
          fma(fma(set1(-0.00332068722f), t, set1(0.0049697659f)), t2,
              fma(set1(-0.0111515382f), t, set1(0.0208689682f))));
  y = fma(y, t4,
          fma(fma(set1(-0.0327703543f), t, set1(0.0484555699f)), t2,
              fma(set1(-0.0679820925f), t, set1(0.0897808373f))));
  y = fma(y, t4,
          fma(fma(set1(-0.113798097f), t, set1(0.143813044f)), t2,
              fma(set1(-0.19549042f), t, set1(0.392712116f))));
  return fma(half, mul(z, y), half);
}

// x / (1 + e^-x).
inline Vec silu(Vec x) { return div(x, add(exp_of(min(sub(zero(), x), set1(88.0f))), set1(1.0f))); }

// x tanh(ln(1 + e^x)) = x (e^2 + 2 e) / (e^2 + 2 e + 2) of e = e^x.
inline Vec mish(Vec x) {
  const Vec e = exp_of(min(x, set1(20.0f)));
  const Vec top = mul(e, add(e, set1(2.0f)));
  return mul(x, div(top, add(top, set1(2.0f))));
}

// sin(x)^2, which repeats after pi.
inline Vec sin_squared(Vec x) {
  const Vec n = round_to_whole(mul(x, set1(0.318309886183790672f)));
  Vec r = fma(n, set1(-3.140625f), x);
  r = fma(n, set1(-9.67502593994140625e-4f), r);
  r = fma(n, set1(-1.509957990978376432e-7f), r);
  const Vec z = mul(r, r);
  Vec y = set1(-2.3889859e-8f);
  y = fma(y, z, set1(2.7525562e-6f));
  y = fma(y, z, set1(-1.98408974e-4f));
  y = fma(y, z, set1(8.3333310e-3f));
  y = fma(y, z, set1(-1.66666667e-1f));
  y = fma(mul(y, z), r, r);
  return mul(y, y);
}

template <typename E>
void narrow(const float* x, std::int64_t count, void* elements) {
  auto* y = static_cast<E*>(elements);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) put(y + i, load(x + i));
  if (i == count) return;
  float rest[kLanes] = {};
  E narrowed[kLanes];
  for (std::int64_t j = i; j < count; ++j) rest[j - i] = x[j];
  put(narrowed, load(rest));
  for (std::int64_t j = i; j < count; ++j) y[j] = narrowed[j - i];
}

// Neither length nor place changes a value's bits.
inline void elu_row(const float* x, std::int64_t count, float* y) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, elu(load(x + i)));
  if (i == count) return;
  float rest[kLanes] = {};
  for (std::int64_t j = i; j < count; ++j) rest[j - i] = x[j];
  store(rest, elu(load(rest)));
  for (std::int64_t j = i; j < count; ++j) y[j] = rest[j - i];
}

inline void mish_row(const float* x, std::int64_t count, float mean, float scale, float shift, float* y) {
  const Vec centre = set1(mean), a = set1(scale), b = set1(shift);
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, mish(fma(sub(load(x + i), centre), a, b)));
  if (i == count) return;
  float rest[kLanes] = {};
  for (std::int64_t j = i; j < count; ++j) rest[j - i] = x[j];
  store(rest, mish(fma(sub(load(rest), centre), a, b)));
  for (std::int64_t j = i; j < count; ++j) y[j] = rest[j - i];
}

template <typename E>
void layer_norm(const float* x, std::int64_t rows, std::int64_t channels, const float* weight,
                const float* bias, float eps, void* elements) {
  auto* y = static_cast<E*>(elements);
  const float part = 1.0f / static_cast<float>(channels);
  for (std::int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    Vec total = zero(), square = zero();
    for (std::int64_t c = 0; c < channels; c += kLanes) total = add(total, load(x + c));
    const Vec mean = set1(sum(total) * part);
    for (std::int64_t c = 0; c < channels; c += kLanes) {
      const Vec centred = sub(load(x + c), mean);
      square = fma(centred, centred, square);
    }
    const Vec scale = set1(1.0f / __builtin_sqrtf(sum(square) * part + eps));
    for (std::int64_t c = 0; c < channels; c += kLanes) {
      put(y + c, fma(mul(sub(load(x + c), mean), scale), load(weight + c), load(bias + c)));
    }
  }
}

template <typename E>
void norm_mish(const float* x, std::int64_t rows, std::int64_t channels, const float* scale,
               const float* shift, const float* after, void* elements) {
  auto* y = static_cast<E*>(elements);
  for (std::int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    for (std::int64_t c = 0; c < channels; c += kLanes) {
      const Vec z = mish(fma(load(x + c), load(scale + c), load(shift + c)));
      put(y + c, after == nullptr ? z : add(z, load(after + c)));
    }
  }
}

inline void add_norm_mish(const float* x, std::int64_t rows, std::int64_t channels, const float* scale,
                          const float* shift, float* y) {
  for (std::int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    for (std::int64_t c = 0; c < channels; c += kLanes) {
      store(y + c, add(load(y + c), mish(fma(load(x + c), load(scale + c), load(shift + c)))));
    }
  }
}

template <typename E>
void snake(const float* x, std::int64_t rows, std::int64_t channels, const float* alpha, void* elements) {
  auto* y = static_cast<E*>(elements);
  for (std::int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    for (std::int64_t c = 0; c < channels; c += kLanes) {
      const Vec a = load(alpha + c), z = load(x + c);
      put(y + c, add(z, div(sin_squared(mul(a, z)), add(a, set1(1e-9f)))));
    }
  }
}

// 2^x for x of -126 and more; a minimax polynomial for the part after the point, 7.5e-8.
inline Vec power_of_two(Vec x) {
  const Vec n = round_to_whole(x), r = sub(x, n);
  Vec y = set1(1.3276471993e-3f);
  y = fma(y, r, set1(9.6755413344e-3f));
  y = fma(y, r, set1(5.5507132735e-2f));
  y = fma(y, r, set1(2.4022119724e-1f));
  y = fma(y, r, set1(6.9314696706e-1f));
  return scale_by_power(fma(y, r, set1(1.0000000717f)), n);
}

constexpr float kPadding = -1e30f;  // the score of a key that is not there

// weights = e^(scores - their largest) of n scores, next to nothing up to `width`; returns their sum.
template <typename E>
float softmax_row(float* scores, std::int64_t n, std::int64_t width, E* weights) {
  for (std::int64_t i = n; i < width; ++i) scores[i] = kPadding;
  Vec most = load(scores);
  for (std::int64_t i = kLanes; i < width; i += kLanes) most = max(most, load(scores + i));
  float lanes[kLanes];
  store(lanes, most);
  float largest = lanes[0];
  for (int i = 1; i < kLanes; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  const Vec log2e = set1(1.44269504088896341f), least = set1(-126.0f),
            shift = set1(largest * -1.44269504088896341f);
  Vec total = zero();
  for (std::int64_t i = 0; i < width; i += kLanes) {
    const Vec e = power_of_two(max(fma(load(scores + i), log2e, shift), least));
    total = add(total, e);
    put(weights + i, e);
  }
  return sum(total);
}

}  // namespace
}  // namespace innervoice
