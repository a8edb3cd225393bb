// Normal noise and the vocoder's source, a vector of places at once. Included inside a kernel file behind its
// vectors.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/voice/functions.h"
#include "cpu/voice/kernels.h"

namespace innervoice {
namespace {

// sin(2 pi x) of a few turns at most: sin over half a turn by Taylor's series, its last coefficients fitted.
inline Vec sin_of_turns(Vec x) {
  const Vec n = round_to_whole(add(x, x)), r = mul(fma(n, set1(-0.5f), x), set1(6.283185307179586f));
  const Vec half = mul(n, set1(0.5f)), odd = sub(half, round_to_whole(half));
  const Vec sign = fma(mul(odd, odd), set1(-8.0f), set1(1.0f)), z = mul(r, r);
  Vec y = set1(-2.3889859e-8f);
  y = fma(y, z, set1(2.7525562e-6f));
  y = fma(y, z, set1(-1.98408974e-4f));
  y = fma(y, z, set1(8.3333310e-3f));
  y = fma(y, z, set1(-1.66666667e-1f));
  return mul(fma(mul(y, z), r, r), sign);
}

// ln x of x in (0, 1), Cephes's polynomial of logf.
inline Vec log_of(const float* x) {
  float power[kLanes], part[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    // The part lies between sqrt(1/2) and sqrt(2).
    const auto exponent = static_cast<std::int32_t>(bits - 0x3f3504f3u) >> 23;
    power[i] = static_cast<float>(exponent);
    bits -= static_cast<std::uint32_t>(exponent) << 23;
    std::memcpy(part + i, &bits, sizeof(bits));
  }
  const Vec e = load(power), m = sub(load(part), set1(1.0f)), z = mul(m, m);
  Vec y = set1(7.0376836292e-2f);
  y = fma(y, m, set1(-1.1514610310e-1f));
  y = fma(y, m, set1(1.1676998740e-1f));
  y = fma(y, m, set1(-1.2420140846e-1f));
  y = fma(y, m, set1(1.4249322787e-1f));
  y = fma(y, m, set1(-1.6668057665e-1f));
  y = fma(y, m, set1(2.0000714765e-1f));
  y = fma(y, m, set1(-2.4999993993e-1f));
  y = fma(y, m, set1(3.3333331174e-1f));
  y = fma(mul(y, m), z, fma(e, set1(-2.12194440e-4f), mul(z, set1(-0.5f))));
  return fma(e, set1(0.693359375f), add(m, y));
}

struct Words {
  std::uint32_t w[4][kLanes];
};

// philox.h's words of counters (first[i], second, 0, 0).
inline Words philox_of(const std::uint32_t* first, std::uint32_t second, std::uint32_t k0, std::uint32_t k1) {
  Words c;
  for (int i = 0; i < kLanes; ++i) {
    c.w[0][i] = first[i];
    c.w[1][i] = second;
    c.w[2][i] = c.w[3][i] = 0;
  }
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) {
      const std::uint64_t a = std::uint64_t{0xD2511F53} * c.w[0][i],
                          b = std::uint64_t{0xCD9E8D57} * c.w[2][i];
      c.w[0][i] = static_cast<std::uint32_t>(b >> 32) ^ c.w[1][i] ^ k0;
      c.w[1][i] = static_cast<std::uint32_t>(b);
      c.w[2][i] = static_cast<std::uint32_t>(a >> 32) ^ c.w[3][i] ^ k1;
      c.w[3][i] = static_cast<std::uint32_t>(a);
    }
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

// Two normals of two words, by Box and Muller.
inline void normal_pair(const std::uint32_t* one, const std::uint32_t* other, float* y0, float* y1) {
  float u[kLanes], turns[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    u[i] = (static_cast<float>(static_cast<std::int32_t>(one[i] >> 9)) + 0.5f) * 0x1p-23f;
    turns[i] = (static_cast<float>(static_cast<std::int32_t>(other[i] >> 9)) + 0.5f) * 0x1p-23f;
  }
  const Vec radius = root(max(mul(log_of(u), set1(-2.0f)), zero())), angle = load(turns);
  store(y0, mul(radius, sin_of_turns(add(angle, set1(0.25f)))));
  store(y1, mul(radius, sin_of_turns(angle)));
}

inline void normals(const std::int64_t* first, std::int64_t count, std::uint32_t second, std::uint32_t k0,
                    std::uint32_t k1, float* y) {
  for (std::int64_t begin = 0; begin < count; begin += kLanes) {
    const int some = static_cast<int>(count - begin < kLanes ? count - begin : kLanes);
    std::uint32_t counter[kLanes] = {};
    for (int i = 0; i < some; ++i) counter[i] = static_cast<std::uint32_t>(first[begin + i]);
    const Words c = philox_of(counter, second, k0, k1);
    float made[4][kLanes];
    normal_pair(c.w[0], c.w[1], made[0], made[1]);
    normal_pair(c.w[2], c.w[3], made[2], made[3]);
    for (int i = 0; i < some; ++i) {
      for (int j = 0; j < 4; ++j) y[4 * (begin + i) + j] = made[j][i];
    }
  }
}

// -m / (m + 2) of m = e^(-2 |x|) - 1, with the sign of x: what is near 0 keeps its digits.
inline Vec tanh_of(Vec x) {
  const Vec m = elu(mul(max(x, sub(zero(), x)), set1(-2.0f)));
  const Vec sign = max(min(mul(x, set1(1e38f)), set1(1.0f)), set1(-1.0f));
  return mul(div(sub(zero(), m), add(m, set1(2.0f))), sign);
}

inline void source_frame(const SourceFrame& frame, float* y) {
  for (std::int64_t begin = 0; begin < frame.len; begin += kLanes) {
    const int some = static_cast<int>(frame.len - begin < kLanes ? frame.len - begin : kLanes);
    Vec total = set1(frame.bias);
    for (std::int64_t h = 0; h < frame.harmonics; ++h) {
      Vec value = zero();
      if (frame.is_voiced) {
        float turns[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const double fundamental = frame.begin + frame.step * static_cast<double>(begin + i + 1);
          const double cycles = fundamental * static_cast<double>(h + 1);
          turns[i] = static_cast<float>(cycles - std::floor(cycles));
        }
        value = mul(sin_of_turns(add(load(turns), set1(frame.turns == nullptr ? 0.0f : frame.turns[h]))),
                    set1(frame.loud));
      }
      if (frame.noise != nullptr) {
        const float* noise = frame.noise + h * frame.noise_stride + begin;
        float rest[kLanes] = {};
        if (some < kLanes) std::memcpy(rest, noise, static_cast<std::size_t>(some) * sizeof(float));
        value = fma(load(some < kLanes ? rest : noise), set1(frame.rough), value);
      }
      total = fma(value, set1(frame.weight[h]), total);
    }
    float made[kLanes];
    store(made, tanh_of(total));
    std::memcpy(y + begin, made, static_cast<std::size_t>(some) * sizeof(float));
  }
}

}  // namespace
}  // namespace innervoice
