// What the engine is held against: kernels, sums and their gradients pair by pair in double precision.
#pragma once
#include <cmath>
#include <vector>

#include "../../csrc/interface.h"

namespace reference {

using decoct::Kernel;
using decoct::Profile;

// What a call is given, but for weights.
inline decoct::Clouds clouds_of(const decoct::Matrix& x, const decoct::Matrix& y,
                                const std::vector<int64_t>& x_offsets, const std::vector<int64_t>& y_offsets,
                                const Kernel& kernel, double* bandwidth) {
  decoct::Clouds c{};
  c.x = x;
  c.y = y;
  c.x_offsets = x_offsets.data();
  c.y_offsets = y_offsets.data();
  c.segments = (int64_t)x_offsets.size() - 1;
  c.bandwidth = bandwidth;
  c.kernel = kernel;
  return c;
}

// k and dk/ds, where s is the squared distance (radial) or the inner product.
struct Value {
  double k, slope;
};

inline Value evaluate(const Kernel& kernel, double bandwidth, double s) {
  Value total{0, 0};
  if (kernel.profile == Profile::linear) return {s, 1};
  if (kernel.profile == Profile::polynomial) {
    const double t = kernel.parameter * s + kernel.offset;
    return {std::pow(t, kernel.degree), kernel.parameter * kernel.degree * std::pow(t, kernel.degree - 1)};
  }
  const double d = std::sqrt(s);
  if (kernel.profile == Profile::energy) return {-d, d > 0 ? -0.5 / d : 0};
  for (int l = 0; l < kernel.scales; ++l) {
    const double square = kernel.scale[l] * bandwidth * bandwidth, alpha = kernel.parameter;
    double k = 0, slope = 0;
    switch (kernel.profile) {
      case Profile::gaussian:
        k = std::exp(-s / (2 * square));
        slope = -k / (2 * square);
        break;
      case Profile::laplacian:
        k = std::exp(-d / std::sqrt(square));
        slope = d > 0 ? -k / (2 * d * std::sqrt(square)) : 0;
        break;
      case Profile::inverse_multiquadric:
        k = 1 / std::sqrt(1 + s / square);
        slope = -0.5 / square * std::pow(1 + s / square, -1.5);
        break;
      default:
        k = std::pow(1 + s / (2 * alpha * square), -alpha);
        slope = -0.5 / square * std::pow(1 + s / (2 * alpha * square), -alpha - 1);
    }
    total.k += k;
    total.slope += slope;
  }
  return total;
}

// One segment: rows of z are x, then y; w their weights.
struct Segment {
  int n = 0, m = 0, dim = 0;
  std::vector<double> z, w;
  std::vector<double> potentials;  // k_ij becomes exp(f_i + f_j) k_ij; empty: none

  double factor(int i, int j) const {
    return potentials.empty() ? 1 : std::exp(potentials[i] + potentials[j]);
  }
};

struct Sums {
  double value = 0,
         magnitude = 0;  // magnitude: the same sum of absolute values, what rounding is relative to
  std::vector<double> grad, grad_weight;
  double grad_magnitude = 0, weight_magnitude = 0;
};

inline double pair_argument(const Segment& s, bool radial, int i, int j) {
  double total = 0;
  for (int d = 0; d < s.dim; ++d) {
    const double p = s.z[i * s.dim + d], q = s.z[j * s.dim + d];
    total += radial ? (p - q) * (p - q) : p * q;
  }
  return total;
}

inline Sums sums(const Segment& s, const Kernel& kernel, double bandwidth, const double* coefficients) {
  const int rows = s.n + s.m;
  const bool radial = decoct::is_radial(kernel.profile);
  Sums out;
  out.grad.assign((size_t)rows * s.dim, 0);
  out.grad_weight.assign(rows, 0);
  if (s.n == 0 || s.m == 0) return out;
  for (int i = 0; i < rows; ++i) {
    double weight_size = 0;
    std::vector<double> size(s.dim, 0);
    for (int j = 0; j < rows; ++j) {
      // The cross sum is taken once in the formula and twice in this loop.
      const bool cross = (i < s.n) != (j < s.n);
      const double c = cross ? 0.5 * coefficients[1] : coefficients[i < s.n ? 0 : 2];
      if (c == 0) continue;
      Value v = evaluate(kernel, bandwidth, pair_argument(s, radial, i, j));
      v.k *= s.factor(i, j);
      v.slope *= s.factor(i, j);
      out.value += c * s.w[i] * s.w[j] * v.k;
      out.magnitude += std::fabs(c * s.w[i] * s.w[j] * v.k);
      out.grad_weight[i] += 2 * c * s.w[j] * v.k;
      weight_size += std::fabs(2 * c * s.w[j] * v.k);
      for (int d = 0; d < s.dim; ++d) {
        const double p = s.z[i * s.dim + d], q = s.z[j * s.dim + d];
        const double step = 2 * c * s.w[i] * s.w[j] * v.slope * (radial ? 2 * (p - q) : q);
        out.grad[i * s.dim + d] += step;
        size[d] += std::fabs(step);
      }
    }
    out.weight_magnitude = std::fmax(out.weight_magnitude, weight_size);
    for (double entry : size) out.grad_magnitude = std::fmax(out.grad_magnitude, entry);
  }
  return out;
}

// Hessian times tangent, from differences of the exact gradient.
inline Sums hessian_product(const Segment& s, const Kernel& kernel, double bandwidth,
                            const double* coefficients, const std::vector<double>& tangent,
                            const std::vector<double>& tangent_weight) {
  const double h = 1e-5;
  Sums side[2];
  for (int sign = 0; sign < 2; ++sign) {
    Segment moved = s;
    for (size_t e = 0; e < s.z.size(); ++e) moved.z[e] += (sign ? h : -h) * tangent[e];
    for (size_t e = 0; e < s.w.size(); ++e) moved.w[e] += (sign ? h : -h) * tangent_weight[e];
    side[sign] = sums(moved, kernel, bandwidth, coefficients);
  }
  Sums out = side[1];
  for (size_t e = 0; e < out.grad.size(); ++e) out.grad[e] = (side[1].grad[e] - side[0].grad[e]) / (2 * h);
  for (size_t e = 0; e < out.grad_weight.size(); ++e)
    out.grad_weight[e] = (side[1].grad_weight[e] - side[0].grad_weight[e]) / (2 * h);
  return out;
}

// 2 s^2 = mean squared distance over ordered pairs i != j of all rows.
inline double mean_bandwidth(const Segment& s) {
  const int rows = s.n + s.m;
  double total = 0;
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < rows; ++j) total += pair_argument(s, true, i, j);
  return std::sqrt(total / (2.0 * rows * (rows - 1)));
}

}  // namespace reference
