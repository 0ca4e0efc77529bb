// Vector registers of the target, chosen at compile time: AVX-512, AVX2+FMA, NEON, or plain C++.
//
// Each struct offers the same static functions on `Reg` (Lanes floats). `Mask` selects the first n
// lanes; masked loads read nothing, and masked stores write nothing, outside of them.
// Masked says that masked loads are one instruction; then between(a, b) selects lanes [a, b), and
// even_of(low, high) takes the even lanes of both.
// evens(p, n) is p[0], p[2], ... for n lanes and 0 beyond, and reads nothing behind the last of them.
// maximum/minimum return their second operand when either is NaN, so `maximum(low, x)` keeps a NaN.
// Rows x Vectors is the register tile of the matrix kernels: accumulators + one row of vectors +
// one broadcast must fit the register file.
#pragma once

#include <stdint.h>
#include <string.h>

// GCC 12 warns inside its own intrinsics headers (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define EDGEMP_INLINE inline __attribute__((always_inline))

namespace edgemp {

#if defined(__AVX512F__) && defined(__AVX512DQ__)

struct Simd {
  using Reg = __m512;
  using Mask = __mmask16;
  static constexpr int Lanes = 16, Rows = 8, Vectors = 3, Depth = 192;
  static constexpr bool Masked = true;
  static EDGEMP_INLINE Reg zero() { return _mm512_setzero_ps(); }
  static EDGEMP_INLINE Reg set(float x) { return _mm512_set1_ps(x); }
  static EDGEMP_INLINE Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static EDGEMP_INLINE void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  static EDGEMP_INLINE Mask mask(int64_t n) {
    return static_cast<Mask>(n >= 16 ? 0xffffu : (1u << n) - 1u);
  }
  static EDGEMP_INLINE Reg load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
  static EDGEMP_INLINE void store(float* p, Reg x, Mask m) { _mm512_mask_storeu_ps(p, m, x); }
  static EDGEMP_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static EDGEMP_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static EDGEMP_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static EDGEMP_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static EDGEMP_INLINE Reg maximum(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static EDGEMP_INLINE Reg minimum(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static EDGEMP_INLINE Reg divide(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static EDGEMP_INLINE Reg nearest(Reg a) { return _mm512_roundscale_ps(a, 8); }
  // a * 2^n for whole n, right into overflow and the subnormal numbers
  static EDGEMP_INLINE Reg scale(Reg a, Reg n) { return _mm512_scalef_ps(a, n); }
  static EDGEMP_INLINE float sum(Reg a) { return _mm512_reduce_add_ps(a); }
  static EDGEMP_INLINE Mask between(int64_t a, int64_t b) {
    return b > 0 ? static_cast<Mask>(mask(b) & ~mask(a > 0 ? a : 0)) : Mask{0};
  }
  static EDGEMP_INLINE Reg even_of(Reg low, Reg high) {
    const __m512i even =
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(low, even, high);
  }
  static EDGEMP_INLINE Reg evens(const float* p, int64_t n) {
    const int64_t last = 2 * n - 1;
    return even_of(load(p, mask(last)), last > 16 ? load(p + 16, mask(last - 16)) : zero());
  }
};

#elif defined(__AVX2__) && defined(__FMA__)

struct Simd {
  using Reg = __m256;
  using Mask = __m256i;
  static constexpr int Lanes = 8, Rows = 4, Vectors = 3, Depth = 256;
  static constexpr bool Masked = true;
  static EDGEMP_INLINE Reg zero() { return _mm256_setzero_ps(); }
  static EDGEMP_INLINE Reg set(float x) { return _mm256_set1_ps(x); }
  static EDGEMP_INLINE Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static EDGEMP_INLINE void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  static EDGEMP_INLINE Mask mask(int64_t n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
  }
  static EDGEMP_INLINE Reg load(const float* p, Mask m) { return _mm256_maskload_ps(p, m); }
  static EDGEMP_INLINE void store(float* p, Reg x, Mask m) { _mm256_maskstore_ps(p, m, x); }
  static EDGEMP_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static EDGEMP_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static EDGEMP_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static EDGEMP_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static EDGEMP_INLINE Reg maximum(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static EDGEMP_INLINE Reg minimum(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static EDGEMP_INLINE Reg divide(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static EDGEMP_INLINE Reg nearest(Reg a) { return _mm256_round_ps(a, 8); }
  static EDGEMP_INLINE Reg power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static EDGEMP_INLINE Reg scale(Reg a, Reg n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    return mul(mul(a, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
  }
  static EDGEMP_INLINE float sum(Reg a) {
    alignas(32) float lane[8];
    store(lane, a);
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  }
  static EDGEMP_INLINE Mask between(int64_t a, int64_t b) {
    if (b <= 0) return _mm256_setzero_si256();
    return _mm256_andnot_si256(mask(a > 8 ? 8 : a), mask(b > 8 ? 8 : b));
  }
  static EDGEMP_INLINE Reg evens(const float* p, int64_t n) {
    const int64_t last = 2 * n - 1;
    return even_of(load(p, mask(last)), last > 8 ? load(p + 8, mask(last - 8)) : zero());
  }
  static EDGEMP_INLINE Reg even_of(Reg low, Reg high) {
    const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
  }
};

#elif defined(__aarch64__) && defined(__ARM_NEON)

struct Simd {
  using Reg = float32x4_t;
  using Mask = int;
  static constexpr int Lanes = 4, Rows = 8, Vectors = 3, Depth = 256;
  static constexpr bool Masked = false;
  static EDGEMP_INLINE Reg zero() { return vdupq_n_f32(0.0f); }
  static EDGEMP_INLINE Reg set(float x) { return vdupq_n_f32(x); }
  static EDGEMP_INLINE Reg load(const float* p) { return vld1q_f32(p); }
  static EDGEMP_INLINE void store(float* p, Reg x) { vst1q_f32(p, x); }
  static EDGEMP_INLINE Mask mask(int64_t n) { return n >= 4 ? 4 : static_cast<int>(n); }
  static EDGEMP_INLINE Reg load(const float* p, Mask m) {
    if (m == 4) return vld1q_f32(p);
    float lane[4] = {};
    for (int i = 0; i < m; ++i) lane[i] = p[i];
    return vld1q_f32(lane);
  }
  static EDGEMP_INLINE void store(float* p, Reg x, Mask m) {
    if (m == 4) return vst1q_f32(p, x);
    float lane[4];
    vst1q_f32(lane, x);
    for (int i = 0; i < m; ++i) p[i] = lane[i];
  }
  static EDGEMP_INLINE Reg add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static EDGEMP_INLINE Reg sub(Reg a, Reg b) { return vsubq_f32(a, b); }
  static EDGEMP_INLINE Reg mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static EDGEMP_INLINE Reg fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static EDGEMP_INLINE Reg maximum(Reg a, Reg b) { return vmaxq_f32(a, b); }
  static EDGEMP_INLINE Reg minimum(Reg a, Reg b) { return vminq_f32(a, b); }
  static EDGEMP_INLINE Reg divide(Reg a, Reg b) { return vdivq_f32(a, b); }
  static EDGEMP_INLINE Reg nearest(Reg a) { return vrndnq_f32(a); }
  static EDGEMP_INLINE Reg power_of_two(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
  }
  static EDGEMP_INLINE Reg scale(Reg a, Reg n) {
    const int32x4_t whole = vcvtq_s32_f32(n), half = vshrq_n_s32(whole, 1);
    return mul(mul(a, power_of_two(half)), power_of_two(vsubq_s32(whole, half)));
  }
  static EDGEMP_INLINE float sum(Reg a) { return vaddvq_f32(a); }
  static EDGEMP_INLINE Reg evens(const float* p, int64_t n) {
    if (n >= 4) {
      const Reg tail = vld1q_f32(p + 3);
      return vuzp1q_f32(vld1q_f32(p), vextq_f32(tail, tail, 1));
    }
    float lane[4] = {};
    for (int64_t i = 0; i < n; ++i) lane[i] = p[2 * i];
    return vld1q_f32(lane);
  }
};

#else

struct Simd {
  struct Reg {
    float lane[4];
  };
  using Mask = int;
  static constexpr int Lanes = 4, Rows = 4, Vectors = 2, Depth = 256;
  static constexpr bool Masked = false;
  template <class F>
  static EDGEMP_INLINE Reg each(F f) {
    return Reg{{f(0), f(1), f(2), f(3)}};
  }
  static EDGEMP_INLINE Reg zero() { return set(0.0f); }
  static EDGEMP_INLINE Reg set(float x) { return Reg{{x, x, x, x}}; }
  static EDGEMP_INLINE Reg load(const float* p) { return Reg{{p[0], p[1], p[2], p[3]}}; }
  static EDGEMP_INLINE void store(float* p, Reg x) {
    for (int i = 0; i < 4; ++i) p[i] = x.lane[i];
  }
  static EDGEMP_INLINE Mask mask(int64_t n) { return n >= 4 ? 4 : static_cast<int>(n); }
  static EDGEMP_INLINE Reg load(const float* p, Mask m) {
    return each([=](int i) { return i < m ? p[i] : 0.0f; });
  }
  static EDGEMP_INLINE void store(float* p, Reg x, Mask m) {
    for (int i = 0; i < m; ++i) p[i] = x.lane[i];
  }
  static EDGEMP_INLINE Reg add(Reg a, Reg b) {
    return each([=](int i) { return a.lane[i] + b.lane[i]; });
  }
  static EDGEMP_INLINE Reg sub(Reg a, Reg b) {
    return each([=](int i) { return a.lane[i] - b.lane[i]; });
  }
  static EDGEMP_INLINE Reg mul(Reg a, Reg b) {
    return each([=](int i) { return a.lane[i] * b.lane[i]; });
  }
  static EDGEMP_INLINE Reg fma(Reg a, Reg b, Reg c) {
    return each([=](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static EDGEMP_INLINE Reg maximum(Reg a, Reg b) {
    return each([=](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static EDGEMP_INLINE Reg minimum(Reg a, Reg b) {
    return each([=](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static EDGEMP_INLINE Reg divide(Reg a, Reg b) {
    return each([=](int i) { return a.lane[i] / b.lane[i]; });
  }
  static EDGEMP_INLINE Reg nearest(Reg a) {
    return each([=](int i) { return __builtin_rintf(a.lane[i]); });
  }
  static EDGEMP_INLINE Reg scale(Reg a, Reg n) {
    return each([=](int i) {
      const float x = n.lane[i];
      return x != x ? x : __builtin_ldexpf(a.lane[i], static_cast<int>(x));
    });
  }
  static EDGEMP_INLINE float sum(Reg a) {
    return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]);
  }
  static EDGEMP_INLINE Reg evens(const float* p, int64_t n) {
    return each([=](int i) { return i < n ? p[2 * i] : 0.0f; });
  }
};

#endif

}  // namespace edgemp
