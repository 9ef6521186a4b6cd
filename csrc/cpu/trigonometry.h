// Sine and cosine of a vector together.
//
// t = n pi/2 + r with |r| <= pi/4: adding 1.5 * 2^mantissa rounds t 2/pi to n and leaves n in the low bits,
// whose last two say which of the polynomials of r is which and with what sign. pi/2 is subtracted in pieces
// so short that n times each but the last is exact, with or without a fused multiply-add. Polynomials:
// interpolation at Chebyshev nodes of sin r / r and cos r made for this file, the leading terms kept exact.
// Largest error 1.5 ulp of 1 (float), 1 ulp (double). Arguments past kLongestTurn, some 1e4 in float and 1e8
// in double, go to the C library one by one: slow, and right.
#pragma once
#include "simd.h"

namespace decoct {
namespace DECOCT_ISA {

template <class T>
struct SineCosine {
  vec<T> sine, cosine;
};

template <class T>
struct Turn;
template <>
struct Turn<float> {
  static constexpr float magic = 12582912.f, longest = 12000.f;
  static constexpr float quarter[] = {0x1.92p+0f, 0x1.fb4p-12f, 0x1.444p-24f, 0x1.68c234p-39f};
  static constexpr float sine[] = {-0.0001958779f, 0.008332748f, -0.16666664f};
  static constexpr float cosine[] = {2.454784e-05f, -0.0013888302f, 0.041666664f};
};
template <>
struct Turn<double> {
  static constexpr double magic = 6755399441055744., longest = 1e8;
  static constexpr double quarter[] = {0x1.921fb50000000p+0, 0x1.110b460000000p-26, 0x1.1a62633145c06p-54};
  static constexpr double sine[] = {-7.586673021289394e-13, 1.6058531210130865e-10,  -2.5052106229867592e-08,
                                    2.755731921933174e-06,  -0.00019841269841265055, 0.008333333333333331,
                                    -0.16666666666666666};
  static constexpr double cosine[] = {-1.1382597309861877e-11, 2.0876145780903544e-09, -2.755731726939027e-07,
                                      2.4801587298761176e-05,  -0.0013888888888887393, 0.041666666666666664};
};

template <class T, int Count>
DECOCT_INLINE vec<T> polynomial(vec<T> z, const T (&coefficients)[Count]) {
  vec<T> p = splat(coefficients[0]);
#pragma GCC unroll 8
  for (int k = 1; k < Count; ++k) p = p * z + coefficients[k];
  return p;
}

// Lanes of `first` where the mask is set, else of `second`.
template <class T>
DECOCT_INLINE vec<T> select(ivec<T> mask, vec<T> first, vec<T> second) {
  return (vec<T>)(((ivec<T>)first & mask) | ((ivec<T>)second & ~mask));
}

template <class T>
static __attribute__((noinline)) SineCosine<T> sine_cosine_each(vec<T> t) {
  SineCosine<T> result;
  for (int k = 0; k < width<T>; ++k) {
    result.sine[k] = (T)__builtin_sin((double)t[k]);
    result.cosine[k] = (T)__builtin_cos((double)t[k]);
  }
  return result;
}

template <class T>
DECOCT_INLINE SineCosine<T> sine_cosine(vec<T> t) {
  using Constants = Turn<T>;
  constexpr int sign = 8 * sizeof(T) - 2;
  const vec<T> size = (vec<T>)((ivec<T>)t & ~(ivec<T>)splat(T(-0.)));
  if (__builtin_expect(any_less(splat(Constants::longest), size), 0)) return sine_cosine_each<T>(t);
  const vec<T> shifted = t * T(0.63661977236758134308) + Constants::magic;
  const vec<T> n = shifted - Constants::magic;
  vec<T> r = t;
#pragma GCC unroll 4
  for (T part : Constants::quarter) r = r - n * part;
  const vec<T> z = r * r;
  const vec<T> sine = r + r * z * polynomial<T>(z, Constants::sine);
  const vec<T> cosine = (T(1) - z * T(0.5)) + z * z * polynomial<T>(z, Constants::cosine);
  const ivec<T> quadrant = (ivec<T>)shifted;
  const ivec<T> odd = -(quadrant & 1);
  return {(vec<T>)((ivec<T>)select<T>(odd, cosine, sine) ^ ((quadrant & 2) << sign)),
          (vec<T>)((ivec<T>)select<T>(odd, sine, cosine) ^ (((quadrant + 1) & 2) << sign))};
}

}  // namespace DECOCT_ISA
}  // namespace decoct
