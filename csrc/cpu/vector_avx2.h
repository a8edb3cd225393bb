// Vectors of eight floats. Included inside a kernel file that is compiled for AVX2, FMA and F16C only.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace innervoice {
namespace {

constexpr int kLanes = 8;
using Vec = __m256;

inline Vec set1(float x) { return _mm256_set1_ps(x); }
inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec load(const float* x) { return _mm256_loadu_ps(x); }
inline void store(float* y, Vec x) { _mm256_storeu_ps(y, x); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
constexpr bool kIsFused = true;  // fma rounds once
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec root(Vec x) { return _mm256_sqrt_ps(x); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline float sum(Vec x) {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}
inline Vec load_bf16(const std::uint16_t* x) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
// Sixteen numbers: those at even places, those at odd ones.
inline void load_bf16_pairs(const std::uint16_t* x, Vec& even, Vec& odd) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
// Sixteen numbers, those at even places first.
inline void split_pairs(const float* x, float* y) {
  const Vec low = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x)), _mm_loadu_ps(x + 8), 1);
  const Vec high = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x + 4)), _mm_loadu_ps(x + 12), 1);
  store(y, _mm256_shuffle_ps(low, high, 0x88));
  store(y + kLanes, _mm256_shuffle_ps(low, high, 0xdd));
}
inline Vec load_int8(const std::int8_t* x) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
}
// x 2^n for whole n.
inline Vec scale_by_power(Vec x, Vec n) {
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(bits));
}
inline Vec round_to_whole(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// y[i] = the sum of the lanes of x[i], for four vectors, in the order in which `sum` adds them up: a row's
// bits are the same beside others.
inline void store_sums(float* y, const Vec* x) {
  __m128 half[4], quarters[2];
  for (int i = 0; i < 4; ++i)
    half[i] = _mm_add_ps(_mm256_castps256_ps128(x[i]), _mm256_extractf128_ps(x[i], 1));
  for (int i = 0; i < 2; ++i) {
    const __m128 a = half[2 * i], b = half[2 * i + 1];
    quarters[i] = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
  }
  _mm_storeu_ps(y, _mm_hadd_ps(quarters[0], quarters[1]));
}
// Rounded to whole numbers of 16 bits.
inline void store_int16(std::int16_t* y, Vec x) {
  const __m256i whole = _mm256_cvtps_epi32(x);
  const __m128i low = _mm256_castsi256_si128(whole), high = _mm256_extracti128_si256(whole, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm_packs_epi32(low, high));
}

constexpr int kShorts = 16;
using Shorts = __m256i;
using Ints = __m256i;

inline Shorts load_shorts(const std::int16_t* x) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
}
inline void store_shorts(std::int16_t* y, Shorts x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), x); }
// The first `count` bytes of a vector's, 0 behind them.
inline Shorts load_first(const std::uint8_t* x, std::int64_t count) {
  std::int16_t shorts[kShorts] = {};
  std::memcpy(shorts, x, static_cast<std::size_t>(count));
  return load_shorts(shorts);
}
inline Shorts widen(const std::int8_t* x) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
// Of every four codes that two bytes hold, the i-th.
template <int i>
inline Shorts nibbles(Shorts x) {
  if constexpr (i == 3) return _mm256_srli_epi16(x, 12);
  const Shorts moved = i == 0 ? x : _mm256_srli_epi16(x, 4 * i);
  return _mm256_and_si256(moved, _mm256_set1_epi16(15));
}
inline Ints zero_ints() { return _mm256_setzero_si256(); }
inline Ints load_ints(const std::int32_t* x) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
}
// Adds the products of neighbours.
inline Ints dot(Ints sum, Shorts a, Shorts b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
inline Vec to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }

// The float16 numbers scales[0 .. count), each over an equal share of the lanes; 0 past available.
template <int count>
inline Vec spread_halves(const std::uint16_t* scales, std::int64_t available) {
  static_assert(count == 1 || count == 2);
  if constexpr (count == 1) return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(scales[0])));
  std::uint32_t both = scales[0];
  if (available > 1) std::memcpy(&both, scales, sizeof(both));
  const __m128i order = _mm_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3);
  return _mm256_cvtph_ps(_mm_shuffle_epi8(_mm_cvtsi32_si128(static_cast<int>(both)), order));
}

// The weights of one group of int4 codes.
template <bool kMinimum>
struct Int4Group {
  Vec step, minimum;
  Int4Group(const std::uint16_t* group_scale, const std::uint16_t* group_minimum)
      : step(spread_halves<1>(group_scale, 1)) {
    if constexpr (kMinimum) minimum = spread_halves<1>(group_minimum, 1);
  }
  // Of kLanes codes from an even place on.
  Vec load(const std::uint8_t* codes) const {
    std::int32_t packed;
    std::memcpy(&packed, codes, sizeof(packed));
    const __m128i bytes = _mm_cvtsi32_si128(packed);
    const __m128i each = _mm_and_si128(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)), _mm_set1_epi8(15));
    const __m256i wide = _mm256_cvtepu8_epi32(each);
    if constexpr (kMinimum) return fma(step, _mm256_cvtepi32_ps(wide), minimum);
    return mul(step, _mm256_cvtepi32_ps(_mm256_sub_epi32(wide, _mm256_set1_epi32(8))));
  }
};

// y[k, n] = x[n, k] for kLanes rows and columns.
inline void transpose(const float* x, std::int64_t ldx, float* y, std::int64_t ldy) {
  Vec half[8], quarter[8];
  for (int n = 0; n < 4; ++n) {  // rows n and n + 4 side by side
    const float *low = x + n * ldx, *high = x + (n + 4) * ldx;
    half[n] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
    half[n + 4] =
        _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low + 4)), _mm_loadu_ps(high + 4), 1);
  }
  for (int k = 0; k < 8; k += 4) {
    quarter[k] = _mm256_unpacklo_ps(half[k], half[k + 1]);
    quarter[k + 1] = _mm256_unpackhi_ps(half[k], half[k + 1]);
    quarter[k + 2] = _mm256_unpacklo_ps(half[k + 2], half[k + 3]);
    quarter[k + 3] = _mm256_unpackhi_ps(half[k + 2], half[k + 3]);
    store(y + k * ldy, _mm256_shuffle_ps(quarter[k], quarter[k + 2], 0x44));
    store(y + (k + 1) * ldy, _mm256_shuffle_ps(quarter[k], quarter[k + 2], 0xee));
    store(y + (k + 2) * ldy, _mm256_shuffle_ps(quarter[k + 1], quarter[k + 3], 0x44));
    store(y + (k + 3) * ldy, _mm256_shuffle_ps(quarter[k + 1], quarter[k + 3], 0xee));
  }
}

constexpr int kDoubleLanes = 4;
using Doubles = __m256d;
inline Doubles set1(double x) { return _mm256_set1_pd(x); }
inline Doubles load(const double* x) { return _mm256_loadu_pd(x); }
inline void store(double* y, Doubles x) { _mm256_storeu_pd(y, x); }
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }

constexpr int kStreams = 4;  // of a weight that are read side by side
inline void prefetch(const void* x) { _mm_prefetch(static_cast<const char*>(x), _MM_HINT_T0); }

}  // namespace
}  // namespace innervoice
