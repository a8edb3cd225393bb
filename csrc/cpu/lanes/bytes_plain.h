// Products of bytes in eight lanes of 32 bits, by loops. Included inside a file of lanes.
#pragma once

#include <cstdint>

#include "cpu/vector_plain.h"

namespace innervoice {
namespace {

constexpr int kLaneTileRows = 2;       // rows of inputs that are taken together
constexpr int kLaneVectorsOfRows = 1;  // rows up to which all vectors of a panel are taken together
constexpr std::int32_t kMovedBytes = 0;

struct Bytes {
  std::int8_t byte[4 * kLanes];
};
using Signed = Bytes;
using Nibbles = Ints;

inline Bytes load_bytes(const std::uint8_t* x) {
  Bytes y;
  std::memcpy(y.byte, x, sizeof(y.byte));
  return y;
}
inline Signed load_signed(const std::uint8_t* x) { return load_bytes(x); }
// The four bytes in every lane.
inline Bytes spread_four(const std::int8_t* x) {
  Bytes y;
  for (int i = 0; i < 4 * kLanes; ++i) y.byte[i] = x[i % 4];
  return y;
}
inline void split(const Bytes& x, Bytes& low, Bytes& high) {
  for (int i = 0; i < 4 * kLanes; ++i) {
    low.byte[i] = static_cast<std::int8_t>(x.byte[i] & 15);
    high.byte[i] = static_cast<std::int8_t>((x.byte[i] >> 4) & 15);
  }
}
inline Ints begin_signed(const std::int32_t*) { return {}; }
inline Ints dot_signed(const Ints& sum, const Bytes& w, const Bytes& x) {
  Ints y = sum;
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 4 * i; j < 4 * i + 4; ++j) y.lane[i] += w.byte[j] * x.byte[j];
  }
  return y;
}
inline Nibbles begin_nibbles(const std::int32_t* start) {
  Ints y;
  for (std::int32_t& lane : y.lane) lane = *start;
  return y;
}
inline Nibbles dot_nibbles(const Nibbles& sum, const Bytes& codes, const Bytes& x) {
  return dot_signed(sum, codes, x);
}
inline Ints end_nibbles(const Nibbles& sum, const std::int32_t*) { return sum; }
inline Vec load_halves(const std::uint16_t* x) {
  return each([&](int i) { return float_of_half(x[i]); });
}
// The bits of the largest magnitude of a block; NaN and infinity are above all.
inline std::int32_t largest_bits(const float* x) {
  std::int32_t most = 0;
  for (int k = 0; k < 32; ++k) {
    std::int32_t bits;
    std::memcpy(&bits, x + k, sizeof(bits));
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return most;
}
// A block's numbers times `factor`, to the nearest; returns their sum.
inline std::int32_t round_block(const float* x, float factor, std::int8_t* y) {
  std::int32_t sum = 0;
  for (int k = 0; k < 32; ++k) {
    y[k] = static_cast<std::int8_t>(std::nearbyintf(x[k] * factor));
    sum += y[k];
  }
  return sum;
}

}  // namespace
}  // namespace innervoice
