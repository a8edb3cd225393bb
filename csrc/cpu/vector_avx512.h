// Vectors of sixteen floats. Included inside a kernel file that is compiled for AVX-512 only.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/avx512.h"
#include "cpu/half.h"

namespace innervoice {
namespace {

constexpr int kLanes = 16;
using Vec = __m512;

inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* y, Vec x) { _mm512_storeu_ps(y, x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
constexpr bool kIsFused = true;  // fma rounds once
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec root(Vec x) { return _mm512_sqrt_ps(x); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline float sum(Vec x) { return _mm512_reduce_add_ps(x); }
inline Vec load_bf16(const std::uint16_t* x) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
// Numbers of a vector's bytes: those at even places, those at odd ones.
inline void load_bf16_pairs(const std::uint16_t* x, Vec& even, Vec& odd) {
  const __m512i pairs = _mm512_loadu_si512(x);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline Vec load_int8(const std::int8_t* x) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))));
}
// x 2^n for whole n.
inline Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
inline Vec round_to_whole(Vec x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// y[i] = the sum of the lanes of x[i], for four vectors.
inline void store_sums(float* y, const Vec* x) {
  // Quarters of vectors are added in the order in which `sum` adds them: 8 lanes apart, 4, 2, 1.
  const Vec ab = add(_mm512_shuffle_f32x4(x[0], x[1], 0x44), _mm512_shuffle_f32x4(x[0], x[1], 0xee));
  const Vec cd = add(_mm512_shuffle_f32x4(x[2], x[3], 0x44), _mm512_shuffle_f32x4(x[2], x[3], 0xee));
  Vec all = add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  all = add(all, _mm512_permute_ps(all, 0x4e));
  all = add(all, _mm512_permute_ps(all, 0xb1));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm_storeu_ps(y, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all)));
}
// Rounded to whole numbers of 16 bits.
inline void store_int16(std::int16_t* y, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
}

constexpr int kShorts = 32;
using Shorts = __m512i;
using Ints = __m512i;

inline Shorts load_shorts(const std::int16_t* x) { return _mm512_loadu_si512(x); }
inline void store_shorts(std::int16_t* y, Shorts x) { _mm512_storeu_si512(y, x); }
// The first `count` bytes of a vector's, 0 behind them.
inline Shorts load_first(const std::uint8_t* x, std::int64_t count) {
#if defined(INNERVOICE_SIMDE)  // which has no such load
  std::uint8_t bytes[64] = {};
  for (std::int64_t i = 0; i < count; ++i) bytes[i] = x[i];
  return _mm512_loadu_si512(bytes);
#else
  return _mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, x);
#endif
}
inline Shorts widen(const std::int8_t* x) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
// Of every four codes that two bytes hold, the i-th.
template <int i>
inline Shorts nibbles(Shorts x) {
  if constexpr (i == 3) return _mm512_srli_epi16(x, 12);
  const Shorts moved = i == 0 ? x : _mm512_srli_epi16(x, 4 * i);
  return _mm512_and_si512(moved, _mm512_set1_epi16(15));
}
inline Ints zero_ints() { return _mm512_setzero_si512(); }
inline Ints load_ints(const std::int32_t* x) { return _mm512_loadu_si512(x); }
// Adds the products of neighbours.
inline Ints dot(Ints sum, Shorts a, Shorts b) { return _mm512_dpwssd_epi32(sum, a, b); }
inline Vec to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }

// The float16 numbers scales[0 .. count), each over an equal share of the lanes; 0 past available.
template <int count>
inline Vec spread_halves(const std::uint16_t* scales, std::int64_t available) {
  static_assert(count == 1 || count == 2 || count == 4);
  if constexpr (count == 4) {
    if (available >= 4) {
      std::int64_t four;
      std::memcpy(&four, scales, sizeof(four));
      const __m256i order = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 4, 5, 4, 5, 4, 5,
                                             4, 5, 6, 7, 6, 7, 6, 7, 6, 7);
      return _mm512_cvtph_ps(_mm256_shuffle_epi8(_mm256_set1_epi64x(four), order));
    }
  }
  const __mmask8 there = static_cast<__mmask8>((1u << (available < count ? available : count)) - 1);
  const __m256i all = _mm256_castsi128_si256(_mm_maskz_loadu_epi16(there, scales));
  const __m256i lanes = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  constexpr int shift = count == 4 ? 2 : count == 2 ? 3 : 4;
  return _mm512_cvtph_ps(_mm256_permutexvar_epi16(_mm256_srli_epi16(lanes, shift), all));
}

// The weights of one group of int4 codes: the sixteen that there can be, looked up.
template <bool kMinimum>
struct Int4Group {
  Vec weights;
  Int4Group(const std::uint16_t* scale, const std::uint16_t* minimum) {
    const Vec codes =
        _mm512_cvtepi32_ps(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const Vec step = spread_halves<1>(scale, 1);
    if constexpr (kMinimum) {
      weights = fma(step, codes, spread_halves<1>(minimum, 1));
    } else {
      weights = mul(step, add(codes, set1(-8.0f)));
    }
  }
  // Of kLanes codes from an even place on.
  Vec load(const std::uint8_t* codes) const {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    const __m128i each = _mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4));  // the low four bits count
    return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(each), weights);
  }
};

// y[k, n] = x[n, k] for kLanes rows and columns.
inline void transpose(const float* x, std::int64_t ldx, float* y, std::int64_t ldy) {
  const __m512i rows = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i places = _mm512_mullo_epi32(rows, _mm512_set1_epi32(static_cast<int>(ldx)));
  for (int k = 0; k < kLanes; ++k) store(y + k * ldy, _mm512_i32gather_ps(places, x + k, 4));
}
#if defined(__AVX512BF16__) || defined(INNERVOICE_SIMDE)
#define INNERVOICE_HALVES  // there are products of bfloat16

// Rounded to nearest even.
inline void store_bf16(std::uint16_t* y, Vec x) {
#if defined(INNERVOICE_SIMDE)  // which does not convert
  float lanes[kLanes];
  store(lanes, x);
  for (int i = 0; i < kLanes; ++i) y[i] = bf16_of_float(lanes[i]);
#else
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), (__m256i)_mm512_cvtneps_pbh(x));
#endif
}
#endif

constexpr int kDoubleLanes = 8;
using Doubles = __m512d;
inline Doubles set1(double x) { return _mm512_set1_pd(x); }
inline Doubles load(const double* x) { return _mm512_loadu_pd(x); }
inline void store(double* y, Doubles x) { _mm512_storeu_pd(y, x); }
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }

constexpr int kStreams = 1;  // of a weight that are read side by side
inline void prefetch(const void* x) { _mm_prefetch(static_cast<const char*>(x), _MM_HINT_T0); }

}  // namespace
}  // namespace innervoice
