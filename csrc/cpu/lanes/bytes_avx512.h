// Products of bytes in sixteen lanes of 32 bits, by AVX-512 VNNI. Included inside a file of lanes.
#pragma once

#include <cstdint>

#include "cpu/vector_avx512.h"

namespace innervoice {
namespace {

constexpr int kLaneTileRows = 8;           // rows of inputs whose sums registers hold
constexpr int kLaneVectorsOfRows = 8;      // rows up to which all vectors of a panel are taken together
constexpr std::int32_t kMovedBytes = 128;  // the instruction multiplies bytes without sign with signed ones

using Bytes = __m512i;
using Signed = __m512i;   // codes of int8, 128 more
using Nibbles = __m512i;  // sums of products of int4

inline Bytes load_bytes(const std::uint8_t* x) { return _mm512_loadu_si512(x); }
inline Signed load_signed(const std::uint8_t* x) {
  return _mm512_xor_si512(_mm512_loadu_si512(x), _mm512_set1_epi8(static_cast<char>(0x80)));
}
// The four bytes in every lane.
inline Bytes spread_four(const std::int8_t* x) {
  std::int32_t four;
  std::memcpy(&four, x, sizeof(four));
  return _mm512_set1_epi32(four);
}
inline void split(Bytes x, Bytes& low, Bytes& high) {
  const __m512i mask = _mm512_set1_epi8(15);
  low = _mm512_and_si512(x, mask);
  high = _mm512_and_si512(_mm512_srli_epi16(x, 4), mask);
}
inline Ints begin_signed(const std::int32_t* start) { return _mm512_set1_epi32(*start); }
inline Ints dot_signed(Ints sum, Signed codes, Bytes x) { return _mm512_dpbusd_epi32(sum, codes, x); }
inline Nibbles begin_nibbles(const std::int32_t* start) { return _mm512_set1_epi32(*start); }
inline Nibbles dot_nibbles(Nibbles sum, Bytes codes, Bytes x) { return _mm512_dpbusd_epi32(sum, codes, x); }
inline Ints end_nibbles(Nibbles sum, const std::int32_t*) { return sum; }
inline Vec load_halves(const std::uint16_t* x) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
// The bits of the largest magnitude of a block; NaN and infinity are above all.
inline std::int32_t largest_bits(const float* x) {
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  const __m512i low = _mm512_and_si512(_mm512_loadu_si512(x), mask);
  return _mm512_reduce_max_epi32(_mm512_max_epi32(low, _mm512_and_si512(_mm512_loadu_si512(x + 16), mask)));
}
// A block's numbers times `factor`, to the nearest; returns their sum.
inline std::int32_t round_block(const float* x, float factor, std::int8_t* y) {
  const __m512i low = _mm512_cvtps_epi32(mul(load(x), set1(factor)));
  const __m512i high = _mm512_cvtps_epi32(mul(load(x + 16), set1(factor)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm512_cvtepi32_epi8(low));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 16), _mm512_cvtepi32_epi8(high));
  return _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
}

}  // namespace
}  // namespace innervoice
