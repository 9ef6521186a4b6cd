// Distances of two rows a and b of gradients, and their derivatives, out of a few inner products: the one
// definition that the CPU, CUDA and its emulation share. With n = |a|, m = |b|, s = <a, b>
//
//   D = 1 - s g(n, m) [+ |a - b|]        g = 1 / (n m + eps), or 1 / (max(n, eps) max(m, eps))
//
// its gradients lie in the plane of a and b,
//
//   dD/da = A a + X b + Z (a - b)        X = -g    A = -s g_n / n    Z = 1 / |a - b| or 0
//   dD/db = X a + B b - Z (a - b)                  B = -s g_m / m
//
// and along tangents u of a and w of b they move by
//
//   A u + X w + Z (u - w) + A' a + X' b + Z' (a - b),   X u + B w - Z (u - w) + X' a + B' b - Z' (a - b)
//
// with A', X', B', Z' out of s' = <a, w> + <b, u>, n' = <a, u> / n, m' = <b, w> / m and
// |a - b|' = <a - b, u - w> / |a - b|. A row of zeros has no direction: its 1 / n becomes 0, as in the
// subgradient 0 of a norm at 0; so does 1 / |a - b| of equal rows. a - b has a coefficient of its own because
// A a + X b would lose it where rows are near each other.
#pragma once
#include "host_device.h"
#include "interface.h"

namespace decoct {

// Inner products of a row in the order in which they are summed: the first four, or all nine.
enum GramSum : int { kSumAB, kSumAA, kSumBB, kSumApart, kSumAU, kSumBU, kSumAW, kSumBW, kSumApartMoved };
constexpr int kFirstSums = 4, kAllSums = 9;

struct RowCoefficients {
  double a, cross, b, apart;
};

struct GradientRule {
  GradientMetric metric;
  EpsilonForm form;
  double epsilon;
};

// g and its derivatives by n and m.
struct InverseNorms {
  double g, n, m, nn, nm, mm;
};

DECOCT_BOTH InverseNorms inverse_norms(const GradientRule& rule, double n, double m) {
  InverseNorms r;
  if (rule.form == EpsilonForm::product) {
    const double g = 1 / (n * m + rule.epsilon);
    r.g = g;
    r.n = -m * g * g;
    r.m = -n * g * g;
    r.nn = 2 * m * m * g * g * g;
    r.mm = 2 * n * n * g * g * g;
    r.nm = (2 * n * m * g - 1) * g * g;
    return r;
  }
  const bool n_held = n < rule.epsilon, m_held = m < rule.epsilon;
  const double of_n = 1 / (n_held ? rule.epsilon : n), of_m = 1 / (m_held ? rule.epsilon : m);
  r.g = of_n * of_m;
  r.n = n_held ? 0 : -r.g * of_n;
  r.m = m_held ? 0 : -r.g * of_m;
  r.nn = n_held ? 0 : 2 * r.g * of_n * of_n;
  r.mm = m_held ? 0 : 2 * r.g * of_m * of_m;
  r.nm = n_held || m_held ? 0 : r.g * of_n * of_m;
  return r;
}

DECOCT_BOTH double root(double x) {
#if defined(__CUDACC__)
  return ::sqrt(x);
#else
  return __builtin_sqrt(x);
#endif
}

// 1 / x, and 0 for 0; NaN stays.
DECOCT_BOTH double inverse_or_zero(double x) {
  return x == 0 ? 0 : 1 / x;
}

DECOCT_BOTH double row_distance(const GradientRule& rule, const double* sums) {
  const double n = root(sums[kSumAA]), m = root(sums[kSumBB]);
  const double cosine = 1 - sums[kSumAB] * inverse_norms(rule, n, m).g;
  return rule.metric == GradientMetric::cosine_l2 ? cosine + root(sums[kSumApart]) : cosine;
}

DECOCT_BOTH RowCoefficients row_gradient(const GradientRule& rule, const double* sums) {
  const double n = root(sums[kSumAA]), m = root(sums[kSumBB]), s = sums[kSumAB];
  const InverseNorms g = inverse_norms(rule, n, m);
  RowCoefficients c;
  c.a = -s * g.n * inverse_or_zero(n);
  c.cross = -g.g;
  c.b = -s * g.m * inverse_or_zero(m);
  c.apart = rule.metric == GradientMetric::cosine_l2 ? inverse_or_zero(root(sums[kSumApart])) : 0;
  return c;
}

DECOCT_BOTH RowCoefficients row_gradient_moved(const GradientRule& rule, const double* sums) {
  const double n = root(sums[kSumAA]), m = root(sums[kSumBB]), s = sums[kSumAB];
  const InverseNorms g = inverse_norms(rule, n, m);
  const double of_n = inverse_or_zero(n), of_m = inverse_or_zero(m);
  const double s_moved = sums[kSumAW] + sums[kSumBU];
  const double n_moved = sums[kSumAU] * of_n, m_moved = sums[kSumBW] * of_m;
  RowCoefficients c;
  c.cross = -(g.n * n_moved + g.m * m_moved);
  c.a = -of_n * (s_moved * g.n + s * (g.nn * n_moved + g.nm * m_moved) - s * g.n * n_moved * of_n);
  c.b = -of_m * (s_moved * g.m + s * (g.nm * n_moved + g.mm * m_moved) - s * g.m * m_moved * of_m);
  const double apart = inverse_or_zero(root(sums[kSumApart]));
  c.apart = rule.metric == GradientMetric::cosine_l2 ? -sums[kSumApartMoved] * apart * apart * apart : 0;
  return c;
}

}  // namespace decoct
