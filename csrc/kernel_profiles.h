// k, k' and k'' of every kernel as a function of r = |x - y|^2 (radial) or z = x . y: the one definition that
// the CPU vectors, CUDA and its emulation share. V is a vector or a scalar, T its scalar type, M supplies
// exp2, sqrt and power.
//
//   gaussian              exp(-r / (2 s^2))
//   laplacian             exp(-sqrt(r) / s)
//   energy                -sqrt(r)
//   inverse_multiquadric  (1 + r / s^2)^(-1/2)
//   rational_quadratic    (1 + r / (2 alpha s^2))^(-alpha)
//   polynomial            (gamma z + coef0)^degree
//   linear                z
//
// Several scales c_l: the sum over s^2 -> c_l s^2. At r = 0 laplacian and energy give k' = k'' = 0: the pair
// has no direction, and the subgradient 0 is the choice under which duplicates stay where they are.
//
// The Hessian of a radial k is 4 k'' d d^T + 2 k' I with d = x - y. Across d the second term of these two
// kernels grows like 1 / |d|, along d it cancels against the first. In one dimension there is nothing
// across d, so both leave the 1 / |d| out (`turning`) instead of subtracting it.
#pragma once
#include "host_device.h"
#include "interface.h"

namespace decoct {

// A bias so low that a pair counts for nothing, where a row or column is not there: with a bias of zero the
// others' could lift its exponential to infinity, and infinity times a weight of zero is NaN.
template <class T>
constexpr T kNothing = T(-1e30);

template <class T>
struct ProfileConstants {
  T rate[kMaxScales], slope[kMaxScales];
  T parameter, offset;
  T turning;  // 0 on a line, where laplacian and energy have no second derivative across it; else 1
  int degree, scales;
};

// What depends on the bandwidth s is folded here, once per segment. `unit` is the square of the factor by
// which the points were divided.
template <class T>
DECOCT_BOTH void set_constants(ProfileConstants<T>& c, const Kernel& kernel, double bandwidth, double unit,
                               int64_t dim) {
  constexpr double log2_e = 1.4426950408889634074;
  c.scales = kernel.scales;
  c.degree = kernel.degree;
  c.parameter = (T)kernel.parameter;
  c.offset = (T)kernel.offset;
  const bool pointed = kernel.profile == Profile::laplacian || kernel.profile == Profile::energy;
  c.turning = pointed && dim == 1 ? T(0) : T(1);
  for (int l = 0; l < kernel.scales; ++l) {
    const double square = kernel.scale[l] * bandwidth * bandwidth / unit;
    c.rate[l] = c.slope[l] = 0;
    switch (kernel.profile) {
      case Profile::gaussian:
        c.rate[l] = (T)(log2_e / (2 * square));
        c.slope[l] = (T)(1 / (2 * square));
        break;
      case Profile::laplacian:
        c.slope[l] = (T)(1 / __builtin_sqrt(square));
        c.rate[l] = (T)(log2_e / __builtin_sqrt(square));
        break;
      case Profile::inverse_multiquadric:
        c.rate[l] = (T)(1 / square);
        break;
      case Profile::rational_quadratic:
        c.rate[l] = (T)(1 / (2 * kernel.parameter * square));
        c.slope[l] = (T)(1 / (2 * square));
        break;
      default:
        break;
    }
  }
}

// k(0) of a radial kernel.
DECOCT_BOTH double at_zero(const Kernel& kernel) {
  return kernel.profile == Profile::energy ? 0 : kernel.scales;
}

template <class V>
struct Jet {
  V k, k1, k2;
};

// 2^exponent, or 2^(bias + exponent), whose factors alone might overflow.
template <bool Plan, class M, class V>
DECOCT_BOTH V decay(V exponent, V bias) {
  if constexpr (Plan)
    return M::exp2_of_any(bias + exponent);
  else
    return M::exp2(exponent);
}

// The share of scale l. `root` is sqrt(s) and `inverse` one over it, for the laplacian.
template <Profile P, int Order, class M, bool Plan, class V, class T>
DECOCT_BOTH Jet<V> profile_at(const ProfileConstants<T>& c, int l, V s, V root, V inverse, V bias) {
  Jet<V> jet{};
  if constexpr (P == Profile::gaussian) {
    jet.k = decay<Plan, M>(V(s * -c.rate[l]), bias);
    if constexpr (Order > 0) jet.k1 = jet.k * -c.slope[l];
    if constexpr (Order > 1) jet.k2 = jet.k * (c.slope[l] * c.slope[l]);
  } else if constexpr (P == Profile::laplacian) {
    jet.k = decay<Plan, M>(V(root * -c.rate[l]), bias);
    if constexpr (Order > 0) jet.k1 = jet.k * inverse * (T(-0.5) * c.slope[l]);
    if constexpr (Order > 1) jet.k2 = jet.k1 * inverse * T(-0.5) * (inverse * c.turning + c.slope[l]);
  } else if constexpr (P == Profile::inverse_multiquadric) {
    const V inverse_u = T(1) / (s * c.rate[l] + T(1));
    jet.k = M::sqrt(inverse_u);
    if constexpr (Order > 0) jet.k1 = jet.k * inverse_u * (T(-0.5) * c.rate[l]);
    if constexpr (Order > 1) jet.k2 = jet.k1 * inverse_u * (T(-1.5) * c.rate[l]);
  } else {  // rational quadratic
    const V u = s * c.rate[l] + T(1);
    const V inverse_u = T(1) / u;
    jet.k = c.parameter == T(1) ? inverse_u : M::power(u, -c.parameter);
    if constexpr (Order > 0) jet.k1 = jet.k * inverse_u * -c.slope[l];
    if constexpr (Order > 1) jet.k2 = jet.k1 * inverse_u * (-(c.parameter + T(1)) * c.rate[l]);
  }
  return jet;
}

// One: whether it is known to have one scale. Plan: of a gaussian or laplacian, times 2^bias.
template <Profile P, int Order, class M, bool One = false, bool Plan = false, class V, class T>
DECOCT_BOTH Jet<V> profile(const ProfileConstants<T>& c, V s, V bias = V{}) {
  Jet<V> jet{};
  if constexpr (P == Profile::linear) {
    jet.k = s;
    jet.k1 = s - s + T(1);
  } else if constexpr (P == Profile::polynomial) {
    const V t = s * c.parameter + c.offset;
    V lower = t - t + T(1), low = t - t;  // t^(degree-1), t^(degree-2)
    for (int n = 1; n < c.degree; ++n) {
      low = lower;
      lower = lower * t;
    }
    jet.k = lower * t;
    jet.k1 = lower * (T(c.degree) * c.parameter);
    jet.k2 = low * (T(c.degree) * T(c.degree - 1) * c.parameter * c.parameter);
  } else if constexpr (P == Profile::energy) {
    const V d = M::sqrt(s);
    const V inverse = M::inverse_or_zero(d);
    jet.k = -d;
    if constexpr (Order > 0) jet.k1 = inverse * T(-0.5);
    if constexpr (Order > 1) jet.k2 = inverse * inverse * inverse * (T(0.25) * c.turning);
  } else {
    V root{}, inverse{};
    if constexpr (P == Profile::laplacian) {
      root = M::sqrt(s);
      if constexpr (Order > 0) inverse = M::inverse_or_zero(root);
    }
    jet = profile_at<P, Order, M, Plan>(c, 0, s, root, inverse, bias);
    for (int l = 1; !One && l < c.scales; ++l) {
      const Jet<V> more = profile_at<P, Order, M, Plan>(c, l, s, root, inverse, bias);
      jet.k += more.k;
      if constexpr (Order > 0) jet.k1 += more.k1;
      if constexpr (Order > 1) jet.k2 += more.k2;
    }
  }
  return jet;
}

}  // namespace decoct
