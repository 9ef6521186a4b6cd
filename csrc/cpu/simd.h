// Vectors of one register's width over GCC/Clang vector extensions, with the few functions a kernel profile
// needs. Included once per instruction set inside namespace decoct::DECOCT_ISA, so that no symbol is shared
// between them.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#pragma GCC diagnostic push
#if !defined(__clang__)  // GCC 12's own AVX-512 header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define DECOCT_INLINE static inline __attribute__((always_inline))

namespace decoct {
namespace DECOCT_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kTileRows = 8, kTileVectors = 3;  // 24 of 32 registers hold the tile
#elif defined(__AVX2__)
constexpr int kBytes = 32, kTileRows = 6, kTileVectors = 2;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kBytes = 16, kTileRows = 6, kTileVectors = 4;  // 24 of 32
#else
constexpr int kBytes = 16, kTileRows = 4, kTileVectors = 2;  // 8 of 16, and room for products without FMA
#endif

template <class T>
struct Simd;
template <>
struct Simd<float> {
  static constexpr int width = kBytes / 4;
  typedef float vec __attribute__((vector_size(kBytes)));
  typedef int32_t ivec __attribute__((vector_size(kBytes)));
};
template <>
struct Simd<double> {
  static constexpr int width = kBytes / 8;
  typedef double vec __attribute__((vector_size(kBytes)));
  typedef int64_t ivec __attribute__((vector_size(kBytes)));
};
using vfloat = Simd<float>::vec;
using vdouble = Simd<double>::vec;

template <class T>
using vec = typename Simd<T>::vec;
template <class T>
using ivec = typename Simd<T>::ivec;
template <class T>
constexpr int width = Simd<T>::width;
template <class T>
constexpr int panel = kTileVectors * Simd<T>::width;  // columns of one register tile

template <class T>
DECOCT_INLINE vec<T> splat(T value) {
  return value - vec<T>{};  // x - 0 keeps every bit of x, NaN and -0 included
}

template <class T>
DECOCT_INLINE vec<T> load(const T* p) {
  vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
DECOCT_INLINE void store(T* p, vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

// Halves are added until four lanes (or two) are left, in registers.
template <class T, int Bytes>
DECOCT_INLINE T sum_halves(const void* p) {
  if constexpr (Bytes > 16) {
    typedef T half __attribute__((vector_size(Bytes / 2)));
    half low, high;
    std::memcpy(&low, p, sizeof low);
    std::memcpy(&high, (const char*)p + sizeof low, sizeof high);
    low += high;
    return sum_halves<T, Bytes / 2>(&low);
  } else {
    T lanes[16 / sizeof(T)];
    std::memcpy(lanes, p, 16);
    return sizeof(T) == 8 ? lanes[0] + lanes[1]
                          : (lanes[0] + lanes[2]) + (lanes[1] + lanes[3 % (16 / sizeof(T))]);
  }
}

template <class T>
DECOCT_INLINE T sum_lanes(vec<T> v) {
  return sum_halves<T, kBytes>(&v);
}

template <class I>
DECOCT_INLINE bool any_lane(I mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  int64_t words[kBytes / 8], all = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (int64_t word : words) all |= word;
  return all != 0;
#endif
}

// Whether a < b in any lane; NaN is not less.
#if defined(__AVX512F__)
DECOCT_INLINE bool any_less(vfloat a, vfloat b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ) != 0;
}
DECOCT_INLINE bool any_less(vdouble a, vdouble b) {
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ) != 0;
}
#elif defined(__AVX2__)
DECOCT_INLINE bool any_less(vfloat a, vfloat b) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ)) != 0;
}
DECOCT_INLINE bool any_less(vdouble a, vdouble b) {
  return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_LT_OQ)) != 0;
}
#else
template <class V>
DECOCT_INLINE bool any_less(V a, V b) {
  return any_lane(a < b);
}
#endif

#if defined(__AVX512F__)
DECOCT_INLINE vfloat sqrt(vfloat v) {
  return (vfloat)_mm512_sqrt_ps((__m512)v);
}
DECOCT_INLINE vdouble sqrt(vdouble v) {
  return (vdouble)_mm512_sqrt_pd((__m512d)v);
}
#elif defined(__AVX2__)
DECOCT_INLINE vfloat sqrt(vfloat v) {
  return (vfloat)_mm256_sqrt_ps((__m256)v);
}
DECOCT_INLINE vdouble sqrt(vdouble v) {
  return (vdouble)_mm256_sqrt_pd((__m256d)v);
}
#else
template <class V>
DECOCT_INLINE V sqrt_each(V v) {
  for (unsigned k = 0; k < sizeof v / sizeof v[0]; ++k)
    v[k] = sizeof v[0] == 4 ? __builtin_sqrtf(v[k]) : __builtin_sqrt(v[k]);
  return v;
}
DECOCT_INLINE vfloat sqrt(vfloat v) {
  return sqrt_each(v);
}
DECOCT_INLINE vdouble sqrt(vdouble v) {
  return sqrt_each(v);
}
#endif

// The larger of x and a bound; x where x is NaN. (The compilers make two instructions of the plain form.)
#if defined(__AVX512F__)
DECOCT_INLINE vfloat at_least(vfloat x, float bound) {
  return (vfloat)_mm512_max_ps((__m512)splat(bound), (__m512)x);
}
DECOCT_INLINE vdouble at_least(vdouble x, double bound) {
  return (vdouble)_mm512_max_pd((__m512d)splat(bound), (__m512d)x);
}
#elif defined(__AVX2__)
DECOCT_INLINE vfloat at_least(vfloat x, float bound) {
  return (vfloat)_mm256_max_ps((__m256)splat(bound), (__m256)x);
}
DECOCT_INLINE vdouble at_least(vdouble x, double bound) {
  return (vdouble)_mm256_max_pd((__m256d)splat(bound), (__m256d)x);
}
#else
template <class V, class T>
DECOCT_INLINE V at_least(V x, T bound) {
  return x < bound ? bound - V{} : x;
}
#endif

// 2^x. x splits into n + r, |r| <= 1/2: adding 1.5 * 2^23 + 127 rounds x to n and leaves n + 127 in the low
// bits, which become the exponent. Coefficients: minimax fits of 2^r made for this file, with the constant 1
// kept exact so that k(x, x) is exact. Largest error 1.8 ulp (float), 1 ulp (double). Below 2^-126 (2^-1022)
// the result is 0.
// 2^r for |r| <= 1/2.
DECOCT_INLINE vfloat exp2_fraction(vfloat r) {
  vfloat p = r * 0.0013225707225501537f + 0.009671762585639954f;
  p = p * r + 0.05550891533493996f;
  p = p * r + 0.24022236466407776f;
  p = p * r + 0.693146824836731f;
  return p * r + 1.f;
}

DECOCT_INLINE vdouble exp2_fraction(vdouble r) {
  constexpr double coefficients[] = {4.4549605981865186e-10, 7.072585949269223e-09, 1.0178062445845774e-07,
                                     1.321544258792169e-06,  1.525273382983612e-05, 0.0001540353044173605,
                                     0.0013333558146416936,  0.009618129107606888,  0.0555041086648216,
                                     0.24022650695910097,    0.6931471805599453,    1.};
  vdouble p = splat(coefficients[0]);
#pragma GCC unroll 11
  for (int k = 1; k < 12; ++k) p = p * r + coefficients[k];
  return p;
}

DECOCT_INLINE vfloat exp2(vfloat x) {
  constexpr float magic = 12582912.f + 127.f;
  x = at_least(x, -127.f);
  const vfloat shifted = x + magic;
  return exp2_fraction(x - (shifted - magic)) * (vfloat)((Simd<float>::ivec)shifted << 23);
}

DECOCT_INLINE vdouble exp2(vdouble x) {
  constexpr double magic = 6755399441055744. + 1023.;
  x = at_least(x, -1023.);
  const vdouble shifted = x + magic;
  return exp2_fraction(x - (shifted - magic)) * (vdouble)((Simd<double>::ivec)shifted << 52);
}

// The same for x of any size: no less than 2^100 (2^1000) above that. NaN stays NaN; what an infinite x gives
// differs from one instruction set to the other.
#if defined(__AVX512F__)
// Scaling rounds its exponent down, so that x itself is the exponent of a fraction from 0 to 1. A minimax fit
// with the constant 1 kept exact; largest error 1.7e-7.
DECOCT_INLINE vfloat exp2_of_any(vfloat x) {
  const vfloat r = (vfloat)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  vfloat p = r * 0.0018671314464882016f + 0.009017025120556355f;
  p = p * r + 0.05579992011189461f;
  p = p * r + 0.24016444385051727f;
  p = p * r + 0.6931512951850891f;
  return (vfloat)_mm512_scalef_ps((__m512)(p * r + 1.f), (__m512)x);
}
DECOCT_INLINE vdouble exp2_of_any(vdouble x) {
  const vdouble r = (vdouble)_mm512_reduce_pd((__m512d)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (vdouble)_mm512_scalef_pd((__m512d)exp2_fraction(r), (__m512d)(x - r));
}
#else
DECOCT_INLINE vfloat exp2_of_any(vfloat x) {
  return exp2(-at_least(-x, -100.f)) + (x - x);
}
DECOCT_INLINE vdouble exp2_of_any(vdouble x) {
  return exp2(-at_least(-x, -1000.)) + (x - x);
}
#endif

template <class T>
struct FloatFormat;
template <>
struct FloatFormat<float> {
  static constexpr int mantissa = 23, bias = 127, terms = 6;
};
template <>
struct FloatFormat<double> {
  static constexpr int mantissa = 52, bias = 1023, terms = 12;
};

// log2 m and the exponent e of u = m 2^e, u positive, finite and normal; m in [0.70, 1.41]. log2 m = 2/ln 2 *
// atanh((m - 1) / (m + 1)) by its series.
template <class T>
struct LogParts {
  vec<T> log_m, whole;
};

template <class T>
DECOCT_INLINE LogParts<T> log2_parts(vec<T> u) {
  using F = FloatFormat<T>;
  const ivec<T> bits = (ivec<T>)u;
  constexpr double root_half = 0.70710678118654752440;
  const ivec<T> e = (bits - (ivec<T>)splat((T)root_half)) >> F::mantissa;
  const vec<T> m = (vec<T>)(bits - (e << F::mantissa));
  const vec<T> f = (m - T(1)) / (m + T(1));
  const vec<T> f2 = f * f;
  vec<T> series = splat(T(1) / T(2 * F::terms + 1));
#pragma GCC unroll 12
  for (int k = F::terms - 1; k >= 0; --k) series = series * f2 + T(1) / T(2 * k + 1);
  return {f * series * T(2.8853900817779268147), __builtin_convertvector(e, vec<T>)};
}

// u^power for finite u >= 1. power * e is kept as head and tail, so that large arguments do not lose digits
// before the exponential.
template <class T>
DECOCT_INLINE vec<T> power(vec<T> u, T exponent) {
  const auto [log_m, whole] = log2_parts<T>(u);
  const vec<T> head = whole * exponent;
#if defined(__FMA__) || defined(__aarch64__)
  const vec<T> tail = whole * exponent - head;  // contracted: exact
#else
  vec<T> tail = {};
  for (int k = 0; k < width<T>; ++k) tail[k] = (double)whole[k] * (double)exponent - (double)head[k];
#endif
  const vec<T> rest = log_m * exponent + tail;
  return exp2(head) * exp2(rest) + (u - u);  // the bit tricks lose NaN, u - u brings it back
}

}  // namespace DECOCT_ISA
}  // namespace decoct
