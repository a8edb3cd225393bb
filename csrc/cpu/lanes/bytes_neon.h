// Four lanes of 32 bits and products of bytes in them, by NEON's dot product. Included inside a file of
// lanes.
#pragma once

#if defined(INNERVOICE_SIMDE)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>
#else
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>

namespace innervoice {
namespace {

constexpr int kLanes = 4;
constexpr int kStreams = 1;            // of a weight that are read side by side
constexpr int kLaneTileRows = 4;       // rows of inputs whose sums registers hold
constexpr int kLaneVectorsOfRows = 4;  // rows up to which all vectors of a panel are taken together
constexpr std::int32_t kMovedBytes = 0;

using Vec = float32x4_t;
using Ints = int32x4_t;
using Bytes = int8x16_t;
using Signed = int8x16_t;
using Nibbles = int32x4_t;  // sums of products of int4

inline Vec set1(float x) { return vdupq_n_f32(x); }
inline Vec zero() { return set1(0.0f); }
inline Vec load(const float* x) { return vld1q_f32(x); }
inline void store(float* y, Vec x) { vst1q_f32(y, x); }
inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
inline Vec to_floats(Ints x) { return vcvtq_f32_s32(x); }
inline void prefetch(const void* x) { __builtin_prefetch(x); }

inline Bytes load_bytes(const std::uint8_t* x) { return vreinterpretq_s8_u8(vld1q_u8(x)); }
inline Signed load_signed(const std::uint8_t* x) { return load_bytes(x); }
// The four bytes in every lane.
inline Bytes spread_four(const std::int8_t* x) {
  std::int32_t four;
  std::memcpy(&four, x, sizeof(four));
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
inline void split(Bytes x, Bytes& low, Bytes& high) {
  low = vandq_s8(x, vdupq_n_s8(15));
  high = vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(x), 4));
}
inline Ints begin_signed(const std::int32_t*) { return vdupq_n_s32(0); }
inline Ints dot_signed(Ints sum, Signed codes, Bytes x) { return vdotq_s32(sum, codes, x); }
inline Nibbles begin_nibbles(const std::int32_t* start) { return vdupq_n_s32(*start); }
inline Nibbles dot_nibbles(Nibbles sum, Bytes codes, Bytes x) { return vdotq_s32(sum, codes, x); }
inline Ints end_nibbles(Nibbles sum, const std::int32_t*) { return sum; }
inline Vec load_halves(const std::uint16_t* x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))); }
// The bits of the largest magnitude of a block; NaN and infinity are above all.
inline std::int32_t largest_bits(const float* x) {
  int32x4_t most = vdupq_n_s32(0);
  for (int k = 0; k < 32; k += kLanes) {
    const int32x4_t bits = vreinterpretq_s32_f32(vld1q_f32(x + k));
    most = vmaxq_s32(most, vandq_s32(bits, vdupq_n_s32(0x7fffffff)));
  }
  return vmaxvq_s32(most);
}
// A block's numbers times `factor`, to the nearest; returns their sum.
inline std::int32_t round_block(const float* x, float factor, std::int8_t* y) {
  int32x4_t sum = vdupq_n_s32(0);
  for (int k = 0; k < 32; k += 2 * kLanes) {
    const int32x4_t low = vcvtq_s32_f32(vrndnq_f32(mul(load(x + k), set1(factor))));
    const int32x4_t high = vcvtq_s32_f32(vrndnq_f32(mul(load(x + k + kLanes), set1(factor))));
    vst1_s8(y + k, vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high))));
    sum = vaddq_s32(sum, vaddq_s32(low, high));
  }
  return vaddvq_s32(sum);
}

}  // namespace
}  // namespace innervoice
