// Sine and cosine together: t = n pi/2 + r with |r| <= pi/4, and polynomials of r (those of
// csrc/cpu/trigonometry.h).
//
// pi/2 is subtracted in three parts by fused multiply-adds, of which the first leaves no error. Floats past
// 4e6 are reduced in double, what is past 2^50 in either type has lost its place on the circle and gives NaN.
// No table and no local memory, unlike the library's functions, which need both for the largest arguments.
#pragma once
#include "compat.cuh"

namespace decoct::cuda {

template <class T>
struct SineCosine {
  T sine, cosine;
};

template <class T>
DECOCT_DEVICE SineCosine<T> in_quadrant(int quadrant, T sine, T cosine) {
  const T first = quadrant & 1 ? cosine : sine, second = quadrant & 1 ? sine : cosine;
  return {quadrant & 2 ? -first : first, (quadrant + 1) & 2 ? -second : second};
}

DECOCT_DEVICE SineCosine<float> of_remainder(int quadrant, float r) {
  const float z = r * r;
  const float odd = multiply_add(multiply_add(-0.0001958779f, z, 0.008332748f), z, -0.16666664f);
  const float even = multiply_add(multiply_add(2.454784e-05f, z, -0.0013888302f), z, 0.041666664f);
  return in_quadrant(quadrant, multiply_add(r * z, odd, r),
                     multiply_add(z * z, even, multiply_add(-0.5f, z, 1.0f)));
}

DECOCT_DEVICE SineCosine<double> of_remainder(int quadrant, double r) {
  const double z = r * r;
  double odd = multiply_add(-7.586673021289394e-13, z, 1.6058531210130865e-10);
  odd = multiply_add(odd, z, -2.5052106229867592e-08);
  odd = multiply_add(odd, z, 2.755731921933174e-06);
  odd = multiply_add(odd, z, -0.00019841269841265055);
  odd = multiply_add(odd, z, 0.008333333333333331);
  odd = multiply_add(odd, z, -0.16666666666666666);
  double even = multiply_add(-1.1382597309861877e-11, z, 2.0876145780903544e-09);
  even = multiply_add(even, z, -2.755731726939027e-07);
  even = multiply_add(even, z, 2.4801587298761176e-05);
  even = multiply_add(even, z, -0.0013888888888887393);
  even = multiply_add(even, z, 0.041666666666666664);
  return in_quadrant(quadrant, multiply_add(r * z, odd, r),
                     multiply_add(z * z, even, multiply_add(-0.5, z, 1.0)));
}

// r of t, and n modulo 4; NaN past 2^50.
DECOCT_DEVICE double remainder_of(double t, int& quadrant) {
  const bool known = t < 1125899906842624.0 && t > -1125899906842624.0;
  const double at = known ? t : 0.0;
  const double n = multiply_add(at, 0.63661977236758138, 6755399441055744.0) - 6755399441055744.0;
  quadrant = (int)((int64_t)n & 3);
  double r = multiply_add(-n, 1.5707963267948966, at);
  r = multiply_add(-n, 6.123233995736766e-17, r);
  r = multiply_add(-n, 1.0828566739219139e-32, r);
  return known ? r : (double)as_float(0x7fc00000u);
}

DECOCT_DEVICE SineCosine<double> sine_cosine(double t) {
  int quadrant;
  const double r = remainder_of(t, quadrant);
  return of_remainder(quadrant, r);
}

DECOCT_DEVICE SineCosine<float> sine_cosine(float t) {
  int quadrant;
  if (t < 4e6f && t > -4e6f) {
    const float shifted = multiply_add(t, 0.63661977f, 12582912.0f), n = shifted - 12582912.0f;
    quadrant = (int)(as_bits(shifted) & 3);
    float r = multiply_add(-n, 1.570796251296997f, t);
    r = multiply_add(-n, 7.549789415861596e-08f, r);
    r = multiply_add(-n, 5.390302529957765e-15f, r);
    return of_remainder(quadrant, r);
  }
  const double r = remainder_of((double)t, quadrant);
  return of_remainder(quadrant, (float)r);
}

}  // namespace decoct::cuda
