// Products of bytes in eight lanes of 32 bits, by AVX2. Included inside a file of lanes.
#pragma once

#include "cpu/lanes/bytes256.h"

namespace innervoice {
namespace {

constexpr std::int32_t kMovedBytes = 0;

struct Signed {
  __m256i codes, magnitudes;
};
using Nibbles = __m256i;  // sums of products of int4, in 16 bits: those of a block fit, 8 (15 127 + 15 127)

inline Signed load_signed(const std::uint8_t* x) {
  const __m256i codes = load_bytes(x);
  return {codes, _mm256_abs_epi8(codes)};
}
inline Ints begin_signed(const std::int32_t*) { return _mm256_setzero_si256(); }
// The sign of a code goes over to the input, which is never -128. Two products fit into 16 bits.
inline Ints dot_signed(Ints sum, Signed w, Bytes x) {
  const __m256i pairs = _mm256_maddubs_epi16(w.magnitudes, _mm256_sign_epi8(x, w.codes));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Nibbles begin_nibbles(const std::int32_t*) { return _mm256_setzero_si256(); }
inline Nibbles dot_nibbles(Nibbles sum, Bytes codes, Bytes x) {
  return kept(_mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x)));
}
inline Ints end_nibbles(Nibbles sum, const std::int32_t* start) {
  return _mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), _mm256_set1_epi32(*start));
}

}  // namespace
}  // namespace innervoice
