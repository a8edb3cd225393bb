// What AVX2 and AVX-VNNI have in common of eight lanes of 32 bits. Included inside a file of lanes.
#pragma once

#include <cstdint>

#include "cpu/vector_avx2.h"

namespace innervoice {
namespace {

constexpr int kLaneTileRows = 6;       // rows of inputs whose sums registers hold
constexpr int kLaneVectorsOfRows = 6;  // rows up to which all vectors of a panel are taken together

using Bytes = __m256i;

// Compilers would read twice what is used twice, and add up in an order that needs more registers than there
// are: x stays where it is.
inline Bytes kept(Bytes x) {
  asm("" : "+x"(x));
  return x;
}
inline Bytes load_bytes(const std::uint8_t* x) {
  return kept(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
// The four bytes in every lane.
inline Bytes spread_four(const std::int8_t* x) {
  std::int32_t four;
  std::memcpy(&four, x, sizeof(four));
  return _mm256_set1_epi32(four);
}
inline void split(Bytes x, Bytes& low, Bytes& high) {
  const __m256i mask = _mm256_set1_epi8(15);
  low = _mm256_and_si256(x, mask);
  high = _mm256_and_si256(_mm256_srli_epi16(x, 4), mask);
}
inline Vec load_halves(const std::uint16_t* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
// The bits of the largest magnitude of a block; NaN and infinity are above all.
inline std::int32_t largest_bits(const float* x) {
  __m256i most = _mm256_setzero_si256();
  for (int k = 0; k < 32; k += kLanes) {
    const __m256i bits = load_bytes(reinterpret_cast<const std::uint8_t*>(x + k));
    most = _mm256_max_epi32(most, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
  }
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
// A block's numbers times `factor`, to the nearest; returns their sum.
inline std::int32_t round_block(const float* x, float factor, std::int8_t* y) {
  __m256i whole[4];
  for (int i = 0; i < 4; ++i) whole[i] = _mm256_cvtps_epi32(mul(load(x + i * kLanes), set1(factor)));
  const __m256i packed =
      _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm256_permutevar8x32_epi32(packed, order));
  const __m256i sum =
      _mm256_add_epi32(_mm256_add_epi32(whole[0], whole[1]), _mm256_add_epi32(whole[2], whole[3]));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

}  // namespace
}  // namespace innervoice
