// What AVX2 and AVX-VNNI have in common of eight lanes of 32 bits. Included inside a file of lanes.
#pragma once

#include <cstdint>

#include "cpu/vector_avx2.h"

namespace innervoice {
namespace {

constexpr int kLaneTileRows = 4;       // rows of inputs whose sums registers hold
constexpr int kLaneVectorsOfRows = 2;  // rows up to which all vectors of a panel are taken together

using Bytes = __m256i;

inline Bytes load_bytes(const std::uint8_t* x) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
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
// Whole numbers as bytes.
inline void store_int8(std::int8_t* y, Vec x) {
  const __m256i whole = _mm256_cvtps_epi32(x);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(y), _mm_packs_epi16(words, words));
}

}  // namespace
}  // namespace innervoice
