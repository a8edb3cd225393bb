// Signals of few channels, a row of floats each: vectors run along the time, so that nothing is padded or
// transposed. Included inside a kernel file behind its vectors.
#pragma once

#include <cstdint>

#include "cpu/voice/functions.h"
#include "cpu/voice/kernels.h"
#include "cpu/voice/products.h"

namespace innervoice {
namespace {

constexpr int kWaveVectors = 3;
constexpr std::int64_t kWaveStep = kWaveVectors * kLanes;
static_assert(kWaveStep <= kWaveSlack, "a last step fits behind the columns");

// kWaveOut rows of y, kWaveStep columns, of the channels [begin, end). A fused sum goes on from the channels
// before; one whose products are rounded starts again at 0, so that it stays short.
inline void wave_tile(const float* x, std::int64_t stride, std::int64_t begin, std::int64_t end,
                      std::int64_t taps, std::int64_t step, const float* w, const float* bias, float* y,
                      std::int64_t y_stride) {
  Vec total[kWaveOut][kWaveVectors];
  for (int n = 0; n < kWaveOut; ++n) {
    for (int v = 0; v < kWaveVectors; ++v) {
      total[n][v] = begin == 0 ? set1(bias[n]) : kIsFused ? load(y + n * y_stride + v * kLanes) : zero();
    }
  }
  w += begin * taps * kWaveOut;
  for (std::int64_t k = begin; k < end; ++k) {
    const float* from = x + k * stride;
    for (std::int64_t tap = 0; tap < taps; ++tap, from += step, w += kWaveOut) {
      Vec a[kWaveVectors];
      for (int v = 0; v < kWaveVectors; ++v) a[v] = load(from + v * kLanes);
      for (int n = 0; n < kWaveOut; ++n) {
        const Vec b = set1(w[n]);
        for (int v = 0; v < kWaveVectors; ++v) total[n][v] = fma(a[v], b, total[n][v]);
      }
    }
  }
  for (int n = 0; n < kWaveOut; ++n) {
    for (int v = 0; v < kWaveVectors; ++v) {
      float* to = y + n * y_stride + v * kLanes;
      store(to, kIsFused || begin == 0 ? total[n][v] : add(load(to), total[n][v]));
    }
  }
}

inline void wave_conv(const float* x, std::int64_t stride, std::int64_t channels, std::int64_t out,
                      std::int64_t taps, std::int64_t step, const float* weight, const float* bias, float* y,
                      std::int64_t y_stride, std::int64_t columns) {
  const std::int64_t together = kChain / taps > 0 ? kChain / taps : 1;  // channels of a pass
  for (std::int64_t begin = 0; begin < channels;
       begin += together) {  // whose weights stay in the first cache
    const std::int64_t end = begin + together < channels ? begin + together : channels;
    for (std::int64_t t = 0; t < columns; t += kWaveStep) {
      for (std::int64_t n = 0; n < out; n += kWaveOut) {
        const float* w = weight + n * channels * taps;
        wave_tile(x + t, stride, begin, end, taps, step, w, bias + n, y + n * y_stride + t, y_stride);
      }
    }
  }
}

inline void leaky_row(float* x, std::int64_t count, float slope) {
  if (slope == 1.0f) return;
  const Vec less = set1(slope);
  for (std::int64_t i = 0; i < count; i += kLanes) {
    const Vec z = load(x + i);  // what is no number stays so, behind the zero
    store(x + i, add(max(zero(), z), mul(min(z, zero()), less)));
  }
}

inline void wave_snake(const float* x, std::int64_t columns, float alpha, float* y) {
  const Vec a = set1(alpha), share = set1(1.0f / (alpha + 1e-9f));
  for (std::int64_t t = 0; t < columns; t += kLanes) {
    const Vec z = load(x + t);
    store(y + t, fma(sin_squared(mul(a, z)), share, z));
  }
}

}  // namespace
}  // namespace innervoice
