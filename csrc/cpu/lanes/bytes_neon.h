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
inline Vec max(Vec a, Vec b) { return vmaxq_f32(a, b); }
inline float sum(Vec x) { return vaddvq_f32(x); }
inline Vec round_to_whole(Vec x) { return vrndnq_f32(x); }
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
// Whole numbers as bytes.
inline void store_int8(std::int8_t* y, Vec x) {
  const int16x4_t words = vmovn_s32(vcvtq_s32_f32(x));
  const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
  std::memcpy(y, &bytes, 4);
}

}  // namespace
}  // namespace innervoice
