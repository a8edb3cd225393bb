// Vectors of floats in C++ alone; compilers make of the loops what the processor has. Included inside a kernel file
// only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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
inline Vec div(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Vec max(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec min(const Vec& a, const Vec& b) {
  return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline float sum(const Vec& x) {
  return ((x.lane[0] + x.lane[4]) + (x.lane[2] + x.lane[6])) + ((x.lane[1] + x.lane[5]) + (x.lane[3] + x.lane[7]));
}
inline Vec load_bf16(const std::uint16_t* x) {
  return each([&](int i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x[i]) << 16;
    float y;
    std::memcpy(&y, &bits, sizeof(y));
    return y;
  });
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
// y[k, n] = x[n, k] for kLanes rows and columns.
inline void transpose(const float* x, std::int64_t ldx, float* y, std::int64_t ldy) {
  for (int n = 0; n < kLanes; ++n) {
    for (int k = 0; k < kLanes; ++k) y[k * ldy + n] = x[n * ldx + k];
  }
}
inline void prefetch(const void*) {}

}  // namespace
}  // namespace innervoice
