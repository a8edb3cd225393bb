// Vectors of floats in C++ alone; compilers make of the loops what the processor has. Included inside a
// kernel file only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/half.h"

namespace innervoice {
namespace {

constexpr int kLanes = 8;

struct Vec {
  float lane[kLanes];
};

template <typename F>
inline Vec each(F&& f) {
  Vec y;
  for (int i = 0; i < kLanes; ++i) y.lane[i] = f(i);
  return y;
}

inline Vec set1(float x) {
  return each([&](int) { return x; });
}
inline Vec zero() { return set1(0.0f); }
inline Vec load(const float* x) {
  Vec y;
  std::memcpy(y.lane, x, sizeof(y.lane));
  return y;
}
inline void store(float* y, const Vec& x) { std::memcpy(y, x.lane, sizeof(x.lane)); }
inline Vec add(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec mul(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {
  return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
constexpr bool kIsFused = false;  // fma rounds the product, then the sum
inline Vec div(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Vec root(const Vec& x) {
  return each([&](int i) { return std::sqrt(x.lane[i]); });
}
inline Vec max(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec min(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline float sum(const Vec& x) {
  return ((x.lane[0] + x.lane[4]) + (x.lane[2] + x.lane[6])) +
         ((x.lane[1] + x.lane[5]) + (x.lane[3] + x.lane[7]));
}
inline Vec load_bf16(const std::uint16_t* x) {
  return each([&](int i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x[i]) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof(y));
    return y;
  });
}
// Sixteen numbers: those at even places, those at odd ones.
inline void load_bf16_pairs(const std::uint16_t* x, Vec& even, Vec& odd) {
  even = each([&](int i) { return float_of_bf16(x[2 * i]); });
  odd = each([&](int i) { return float_of_bf16(x[2 * i + 1]); });
}
// Sixteen numbers, those at even places first.
inline void split_pairs(const float* x, float* y) {
  for (int i = 0; i < kLanes; ++i) {
    y[i] = x[2 * i];
    y[kLanes + i] = x[2 * i + 1];
  }
}
inline Vec load_int8(const std::int8_t* x) {
  return each([&](int i) { return static_cast<float>(x[i]); });
}
// x 2^n for whole n.
inline Vec scale_by_power(const Vec& x, const Vec& n) {
  return each([&](int i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<std::int32_t>(n.lane[i]) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof(power));
    return x.lane[i] * power;
  });
}
inline Vec round_to_whole(const Vec& x) {
  return each([&](int i) { return std::nearbyintf(x.lane[i]); });
}
// y[i] = the sum of the lanes of x[i], for four vectors.
inline void store_sums(float* y, const Vec* x) {
  for (int i = 0; i < 4; ++i) y[i] = sum(x[i]);
}
// Rounded to whole numbers of 16 bits.
inline void store_int16(std::int16_t* y, const Vec& x) {
  for (int i = 0; i < kLanes; ++i) y[i] = static_cast<std::int16_t>(std::nearbyintf(x.lane[i]));
}

constexpr int kShorts = 16;

struct Shorts {
  std::int16_t lane[kShorts];
};
struct Ints {
  std::int32_t lane[kLanes];
};

inline Shorts load_shorts(const std::int16_t* x) {
  Shorts y;
  std::memcpy(y.lane, x, sizeof(y.lane));
  return y;
}
inline void store_shorts(std::int16_t* y, const Shorts& x) { std::memcpy(y, x.lane, sizeof(x.lane)); }
// The first `count` bytes of a vector's, 0 behind them.
inline Shorts load_first(const std::uint8_t* x, std::int64_t count) {
  std::int16_t shorts[kShorts] = {};
  std::memcpy(shorts, x, static_cast<std::size_t>(count));
  return load_shorts(shorts);
}
inline Shorts widen(const std::int8_t* x) {
  Shorts y;
  for (int i = 0; i < kShorts; ++i) y.lane[i] = x[i];
  return y;
}
// Of every four codes that two bytes hold, the i-th.
template <int i>
inline Shorts nibbles(const Shorts& x) {
  Shorts y;
  for (int n = 0; n < kShorts; ++n)
    y.lane[n] = static_cast<std::int16_t>((static_cast<std::uint16_t>(x.lane[n]) >> (4 * i)) & 15);
  return y;
}
inline Ints zero_ints() { return {}; }
inline Ints load_ints(const std::int32_t* x) {
  Ints y;
  std::memcpy(y.lane, x, sizeof(y.lane));
  return y;
}
// Adds the products of neighbours.
inline Ints dot(const Ints& sum, const Shorts& a, const Shorts& b) {
  Ints y;
  for (int i = 0; i < kLanes; ++i)
    y.lane[i] = sum.lane[i] + a.lane[2 * i] * b.lane[2 * i] + a.lane[2 * i + 1] * b.lane[2 * i + 1];
  return y;
}
inline Vec to_floats(const Ints& x) {
  return each([&](int i) { return static_cast<float>(x.lane[i]); });
}

// The float16 numbers scales[0 .. count), each over an equal share of the lanes; 0 past available.
template <int count>
inline Vec spread_halves(const std::uint16_t* scales, std::int64_t available) {
  return each([&](int i) {
    const int group = i / (kLanes / count);
    return group < available ? float_of_half(scales[group]) : 0.0f;
  });
}

// The weights of one group of int4 codes.
template <bool kMinimum>
struct Int4Group {
  float step, minimum = 0.0f;
  Int4Group(const std::uint16_t* group_scale, const std::uint16_t* group_minimum)
      : step(float_of_half(*group_scale)) {
    if constexpr (kMinimum) minimum = float_of_half(*group_minimum);
  }
  // Of kLanes codes from an even place on.
  Vec load(const std::uint8_t* codes) const {
    return each([&](int i) {
      const int code = (codes[i / 2] >> (i % 2 * 4)) & 15;
      return kMinimum ? step * static_cast<float>(code) + minimum : step * static_cast<float>(code - 8);
    });
  }
};

// y[k, n] = x[n, k] for kLanes rows and columns.
inline void transpose(const float* x, std::int64_t ldx, float* y, std::int64_t ldy) {
  for (int n = 0; n < kLanes; ++n) {
    for (int k = 0; k < kLanes; ++k) y[k * ldy + n] = x[n * ldx + k];
  }
}

constexpr int kDoubleLanes = 4;
struct Doubles {
  double lane[kDoubleLanes];
};
inline Doubles set1(double x) { return {{x, x, x, x}}; }
inline Doubles load(const double* x) { return {{x[0], x[1], x[2], x[3]}}; }
inline void store(double* y, const Doubles& x) { std::memcpy(y, x.lane, sizeof(x.lane)); }
inline Doubles fma(const Doubles& a, const Doubles& b, const Doubles& c) {
  Doubles y;
  for (int i = 0; i < kDoubleLanes; ++i) y.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
  return y;
}

constexpr int kStreams = 1;  // of a weight that are read side by side
inline void prefetch(const void*) {}

}  // namespace
}  // namespace innervoice
