// Products of bytes in eight lanes of 32 bits, by AVX-VNNI. Included inside a file of lanes.
#pragma once

#include "cpu/lanes/bytes256.h"

namespace innervoice {
namespace {

constexpr std::int32_t kMovedBytes = 128;  // the instruction multiplies bytes without sign with signed ones

using Signed = __m256i;   // codes of int8, 128 more
using Nibbles = __m256i;  // sums of products of int4

inline Signed load_signed(const std::uint8_t* x) {
  return _mm256_xor_si256(load_bytes(x), _mm256_set1_epi8(static_cast<char>(0x80)));
}
inline Ints begin_signed(const std::int32_t* start) { return _mm256_set1_epi32(*start); }
inline Ints dot_signed(Ints sum, Signed codes, Bytes x) { return _mm256_dpbusd_avx_epi32(sum, codes, x); }
inline Nibbles begin_nibbles(const std::int32_t* start) { return _mm256_set1_epi32(*start); }
inline Nibbles dot_nibbles(Nibbles sum, Bytes codes, Bytes x) {
  return _mm256_dpbusd_avx_epi32(sum, codes, x);
}
inline Ints end_nibbles(Nibbles sum, const std::int32_t*) { return sum; }

}  // namespace
}  // namespace innervoice
