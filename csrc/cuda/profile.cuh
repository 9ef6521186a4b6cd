// The kernels k of kernel_profiles.h on a lane's numbers, and the choice among them by switches that all
// threads take alike.
#pragma once
#include <type_traits>

#include "../kernel_profiles.h"
#include "values.cuh"

namespace decoct::cuda {

// What kernel_profiles.h needs beside arithmetic, of one number or of several.
struct Math {
  static DECOCT_DEVICE float exp2(float v) { return exp2_approximate(v); }
  static DECOCT_DEVICE double exp2(double v) { return ::exp2(v); }
  // Of plans: above 2^127 infinite, which whoever adds it up must take for out of range.
  static DECOCT_DEVICE float exp2_of_any(float v) { return exp2_approximate(v); }
  static DECOCT_DEVICE double exp2_of_any(double v) { return ::exp2(v); }
  static DECOCT_DEVICE float sqrt(float v) { return ::sqrtf(v); }
  static DECOCT_DEVICE double sqrt(double v) { return ::sqrt(v); }
  static DECOCT_DEVICE float power(float v, float e) { return ::exp2f(e * ::log2f(v)); }
  static DECOCT_DEVICE double power(double v, double e) { return ::exp2(e * ::log2(v)); }
  template <class T>
  static DECOCT_DEVICE T inverse_or_zero(T d) {
    const T zero = d - d;  // NaN where d is not finite
    return d == zero ? zero : T(1) / d;
  }

  template <class T, int N>
  static DECOCT_DEVICE Values<T, N> exp2(const Values<T, N>& v) {
    return make_values<N>([&](int k) { return exp2(v.v[k]); });
  }
  template <class T, int N>
  static DECOCT_DEVICE Values<T, N> exp2_of_any(const Values<T, N>& v) {
    return exp2(v);
  }
  template <class T, int N>
  static DECOCT_DEVICE Values<T, N> sqrt(const Values<T, N>& v) {
    return make_values<N>([&](int k) { return sqrt(v.v[k]); });
  }
  template <class T, int N>
  static DECOCT_DEVICE Values<T, N> power(const Values<T, N>& v, T e) {
    return make_values<N>([&](int k) { return power(v.v[k], e); });
  }
  template <class T, int N>
  static DECOCT_DEVICE Values<T, N> inverse_or_zero(const Values<T, N>& v) {
    return make_values<N>([&](int k) { return inverse_or_zero(v.v[k]); });
  }
};

// use(profile as a constant), by a switch that all threads take alike.
template <bool WithGaussian, class Use>
DECOCT_DEVICE auto with_profile(Profile profile, Use use) {
  if constexpr (WithGaussian)
    if (profile == Profile::gaussian) return use(std::integral_constant<Profile, Profile::gaussian>{});
  switch (profile) {
    case Profile::laplacian:
      return use(std::integral_constant<Profile, Profile::laplacian>{});
    case Profile::energy:
      return use(std::integral_constant<Profile, Profile::energy>{});
    case Profile::inverse_multiquadric:
      return use(std::integral_constant<Profile, Profile::inverse_multiquadric>{});
    case Profile::rational_quadratic:
      return use(std::integral_constant<Profile, Profile::rational_quadratic>{});
    case Profile::polynomial:
      return use(std::integral_constant<Profile, Profile::polynomial>{});
    default:
      return use(std::integral_constant<Profile, Profile::linear>{});
  }
}

// use(profile, whether it has one scale): gaussians have kernels of their own, the others share one.
template <bool Gaussian, class Use>
DECOCT_DEVICE auto with_kernel(Profile profile, int scales, Use use) {
  if constexpr (Gaussian) {
    constexpr std::integral_constant<Profile, Profile::gaussian> gaussian{};
    return scales == 1 ? use(gaussian, std::true_type{}) : use(gaussian, std::false_type{});
  } else {
    return with_profile<false>(profile, [&](auto constant) { return use(constant, std::false_type{}); });
  }
}

// Kernels that may be multiplied by exp(f_i + g_j) (Clouds::f, g).
constexpr bool may_be_plan(Profile p) {
  return p == Profile::gaussian || p == Profile::laplacian;
}

// Times 2^bias, of those that may be plans.
template <int Order, class T>
DECOCT_DEVICE Jet<T> profile_of(Profile profile, const ProfileConstants<T>& c, T r, T bias) {
  return with_profile<true>(profile, [&](auto constant) {
    constexpr Profile p = decltype(constant)::value;
    return decoct::profile<p, Order, Math, false, may_be_plan(p)>(c, r, bias);
  });
}

}  // namespace decoct::cuda
