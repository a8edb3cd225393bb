// Columns of a stream's past and of what it brings, channels first, cut out for the kernels: as rows, a
// column each, or as the signals that they are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/voice/kernels.h"

namespace innervoice {

constexpr std::int64_t kBlock = 16;

// rows[t, c] = x[c, t], with `stride` floats from row to row, in blocks that stay in the first cache.
template <typename T>
inline void rows_of(const T* x, std::int64_t ldx, std::int64_t channels, std::int64_t columns, T* rows,
                    std::int64_t stride) {
  for (std::int64_t c = 0; c < channels; c += kBlock) {
    const std::int64_t c_end = std::min(channels, c + kBlock);
    for (std::int64_t t = 0; t < columns; t += kBlock) {
      const std::int64_t t_end = std::min(columns, t + kBlock);
      for (std::int64_t i = c; i < c_end; ++i) {
        for (std::int64_t j = t; j < t_end; ++j) rows[j * stride + i] = x[i * ldx + j];
      }
    }
  }
}

// Columns first ... first + count - 1 of past ++ x as rows.
template <typename T>
inline void window_of(const T* past, std::int64_t past_columns, const T* x, std::int64_t columns,
                      std::int64_t channels, std::int64_t first, std::int64_t count, T* rows,
                      std::int64_t stride) {
  const std::int64_t old = std::clamp<std::int64_t>(past_columns - first, 0, count);
  if (old > 0) rows_of(past + first, past_columns, channels, old, rows, stride);
  if (old < count) {
    rows_of(x + first + old - past_columns, columns, channels, count - old, rows + old * stride, stride);
  }
}

// The same of one signal.
template <typename T>
inline void join(const T* past, std::int64_t past_columns, const T* x, std::int64_t first, std::int64_t count,
                 T* y) {
  const std::int64_t old = std::clamp<std::int64_t>(past_columns - first, 0, count);
  if (old > 0) std::copy_n(past + first, old, y);
  if (old < count) {
    std::copy_n(x + first + old - past_columns, count - old, y + old);
  }
}

// Zeros the columns of a signal whose position, from `position` on, is outside [0, end).
template <typename T>
inline void clip(T* x, std::int64_t count, std::int64_t position, std::int64_t end) {
  const std::int64_t begin = std::clamp<std::int64_t>(-position, 0, count);
  const std::int64_t stop = std::clamp<std::int64_t>(end - position, begin, count);
  std::fill_n(x, begin, T(0));
  std::fill_n(x + stop, count - stop, T(0));
}

// A weight [N, taps, K] as wave_conv reads it, [N' / kWaveOut, K, taps, kWaveOut], N' of zeros behind N.
inline std::vector<float> grouped(const float* w, std::int64_t columns, std::int64_t taps,
                                  std::int64_t depth) {
  const std::int64_t groups = (columns + kWaveOut - 1) / kWaveOut;
  std::vector<float> made(static_cast<std::size_t>(groups * depth * taps * kWaveOut), 0.0f);
  for (std::int64_t n = 0; n < columns; ++n) {
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      for (std::int64_t k = 0; k < depth; ++k) {
        const std::int64_t place = ((n / kWaveOut * depth + k) * taps + tap) * kWaveOut + n % kWaveOut;
        made[static_cast<std::size_t>(place)] = w[(n * taps + tap) * depth + k];
      }
    }
  }
  return made;
}

}  // namespace innervoice
