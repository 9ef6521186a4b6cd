// What transport is held against: the same schedule of steps on whole cost matrices in double, from
// logarithms.
#pragma once
#include <functional>

#include "reference.h"

namespace reference {

using decoct::kNeedX;
using decoct::kNeedY;
using decoct::kTermXX;
using decoct::kTermXY;
using decoct::kTermYY;

struct TransportCase {
  std::string name;
  int power = 2;
  double blur = 0.2, scaling = 0.5, diameter = 0, reach_x = INFINITY, reach_y = INFINITY, mass = 0;
  double tolerance = 0;
  int max_iterations = 100;
  bool labels = false, warm = false;
  int terms = kTermXY | kTermXX | kTermYY, need = kNeedX | kNeedY;

  double power_of(double length) const { return power == 2 ? length * length : length; }
};

inline constexpr int kLabels = 3;
inline constexpr double kLabelCosts[kLabels * kLabels] = {0, 0.5, 1, 0.5, 0, 2, 1, 2, 0.25};

// What a segment's term comes to.
struct TransportTerm {
  std::vector<double> f, g, grad_f, grad_g;
  double value = 0, error = 0;
  int64_t iterations = 0;
};

struct TransportReference {
  const TransportCase& test;
  const Segment& s;
  int first_row, rows, first_column, columns, row_label, column_label;
  double reach_rows, reach_columns;
  std::vector<double> cost;
  double shift = 0;

  TransportReference(const TransportCase& t, const Segment& segment, bool rows_x, bool columns_x, int x_label,
                     int y_label)
      : test(t),
        s(segment),
        first_row(rows_x ? 0 : s.n),
        rows(rows_x ? s.n : s.m),
        first_column(columns_x ? 0 : s.n),
        columns(columns_x ? s.n : s.m),
        row_label(rows_x ? x_label : y_label),
        column_label(columns_x ? x_label : y_label),
        reach_rows(t.power_of(rows_x ? t.reach_x : t.reach_y)),
        reach_columns(t.power_of(columns_x ? t.reach_x : t.reach_y)) {
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) {
        const double r = pair_argument(s, true, first_row + i, first_column + j);
        double c = test.power == 2 ? r / 2 : std::sqrt(r);
        if (test.labels) c += kLabelCosts[label(row_label, i) * kLabels + label(column_label, j)];
        cost.push_back(c);
      }
  }

  static int label(int from, int row) { return (from + row) * 7 % 5 % kLabels; }

  double diameter() const {
    if (test.diameter > 0) return test.power_of(test.diameter);
    double square = 0, most = 0;
    for (int d = 0; d < s.dim; ++d) {
      double low = INFINITY, high = -INFINITY;
      for (int i = 0; i < s.n + s.m; ++i) {
        low = std::fmin(low, s.z[i * s.dim + d]);
        high = std::fmax(high, s.z[i * s.dim + d]);
      }
      square += (high - low) * (high - low);
    }
    for (const double c : kLabelCosts) most = std::fmax(most, std::fabs(c));
    const double eps = test.power_of(std::sqrt(square)) + (test.labels ? most : 0);
    return eps > 0 ? eps : test.power_of(test.blur);
  }

  // log sum_j b_j exp((g_j - C_ij) / eps), or the same for a column.
  double log_sum(bool of_row, int at, const std::vector<double>& other, double eps) const {
    const int count = of_row ? columns : rows, first = of_row ? first_column : first_row;
    double most = -INFINITY, sum = 0;
    for (int pass = 0; pass < 2; ++pass)
      for (int k = 0; k < count; ++k) {
        const double c = of_row ? cost[at * columns + k] : cost[k * columns + at];
        const double exponent = (other[k] - c) / eps, weight = s.w[first + k];
        if (weight == 0) continue;
        if (pass == 0)
          most = std::fmax(most, exponent);
        else
          sum += weight * std::exp(exponent - most);
      }
    return most + std::log(sum);
  }

  // The h with sum_i w_i min(1, exp((h - full_i) / eps)) = mass, by halving.
  double multiplier(const std::vector<double>& full, int first, double eps) const {
    double low = INFINITY, high = -INFINITY;
    for (size_t i = 0; i < full.size(); ++i)
      if (s.w[first + i] > 0) {
        low = std::fmin(low, full[i]);
        high = std::fmax(high, full[i]);
      }
    for (low -= 100 * eps; high - low > 1e-15 * std::fmax(1, std::fabs(high));) {
      const double h = 0.5 * (low + high);
      if (h == low || h == high) break;
      double sent = 0;
      for (size_t i = 0; i < full.size(); ++i)
        sent += s.w[first + i] * std::exp(std::fmin((h - full[i]) / eps, 0.0));
      (sent < test.mass ? low : high) = h;
    }
    return high;
  }

  TransportTerm solve(bool symmetric, std::vector<double> f, std::vector<double> g) {
    TransportTerm out;
    std::vector<double> old_f, old_g;
    const double last = test.power_of(test.blur), factor = test.power_of(test.scaling);
    const auto iterate = [&](double eps, bool whole) {
      old_f = f;
      old_g = g;
      double plan = 0, missed[2] = {}, mass[2] = {}, value = 0, next_shift = 0;
      for (const bool of_row : {true, false}) {
        if (symmetric && !of_row) continue;
        const double reach = of_row ? reach_rows : reach_columns;
        const int count = of_row ? rows : columns, first = of_row ? first_row : first_column;
        std::vector<double> full;  // T of each row
        for (int i = 0; i < count; ++i)
          full.push_back(-eps * log_sum(of_row, i, of_row ? old_g : old_f, eps));
        const double h = test.mass > 0 ? multiplier(full, first, eps) : 0;
        next_shift += h / 2;
        for (int i = 0; i < count; ++i) {
          const double old = of_row ? old_f[i] : old_g[i], weight = s.w[first + i];
          double next = full[i] / (1 + eps / reach);
          if (test.mass > 0) next = std::fmin(full[i] - h, 0.0);
          const double sum = std::exp((old + shift - full[i]) / eps);
          const double kept = reach == INFINITY && test.mass == 0 ? 1 : std::exp((next + h - full[i]) / eps);
          missed[of_row] += weight * std::fabs(sum - kept);
          mass[of_row] += weight;
          if (of_row) plan += weight * sum;
          if (!whole) next = 0.5 * (old + next);
          (of_row ? f : g)[i] = next;
          if (weight != 0)
            value += weight * (reach == INFINITY ? next : -(reach + eps / 2) * std::expm1(-next / reach));
        }
      }
      if (symmetric) g = f;
      shift = whole ? next_shift : 0.5 * (shift + next_shift);
      out.value = value + test.mass * shift;
      out.error = std::fmax(missed[1] / mass[1], symmetric ? 0 : missed[0] / mass[0]);
      if (test.mass > 0) out.error = std::fmax(out.error, std::fabs(plan / test.mass - 1));
      ++out.iterations;
    };
    if (!test.warm) {
      iterate(diameter(), true);
      iterate(diameter(), false);
      for (double eps = diameter(); eps > last && out.iterations + 2 < test.max_iterations; eps *= factor)
        iterate(eps, false);
    }
    iterate(last, false);
    while (test.tolerance > 0 && out.error > test.tolerance && out.iterations + 1 < test.max_iterations)
      iterate(last, false);
    iterate(last, true);
    out.f = f;
    out.g = g;
    out.grad_f = derivative(true, f, old_g, last);
    if (!symmetric) out.grad_g = derivative(false, g, old_f, last);
    return out;
  }

  std::vector<double> derivative(bool of_row, const std::vector<double>& own,
                                 const std::vector<double>& other, double eps) const {
    const int count = of_row ? rows : columns, others = of_row ? columns : rows;
    const double reach = of_row ? reach_rows : reach_columns;
    std::vector<double> out((size_t)count * s.dim);
    for (int i = 0; i < count; ++i) {
      double sum = 0;
      for (int j = 0; j < others; ++j) {
        const int p = (of_row ? first_row : first_column) + i, q = (of_row ? first_column : first_row) + j;
        const double c = of_row ? cost[i * columns + j] : cost[j * columns + i];
        const double plan = s.w[q] * std::exp((own[i] + other[j] + shift - c) / eps);
        const double d = std::sqrt(pair_argument(s, true, p, q));
        sum += plan;
        for (int e = 0; e < s.dim; ++e)
          out[i * s.dim + e] += s.w[p] * plan * (s.z[p * s.dim + e] - s.z[q * s.dim + e]) *
                                (test.power == 2 ? 1
                                 : d > 0         ? 1 / d
                                                 : 0);
      }
      for (int e = 0; e < s.dim && reach == INFINITY && test.mass == 0; ++e) out[i * s.dim + e] /= sum;
    }
    return out;
  }
};

// The numbers of a case, and labels counted from 0 for x and from 2 for y, as the engine takes them.
struct TransportInput {
  std::vector<int64_t> labels[2];
  decoct::SinkhornArguments arguments{};

  TransportInput(const TransportCase& test, const std::vector<Segment>& segments,
                 const decoct::Clouds& clouds) {
    for (const bool on_x : {true, false})
      for (const Segment& s : segments)
        for (int i = 0; i < (on_x ? s.n : s.m); ++i)
          labels[!on_x].push_back(TransportReference::label(on_x ? 0 : 2, i));
    decoct::SinkhornArguments& a = arguments;
    a.clouds = clouds;
    if (test.labels) {
      const decoct::DType type = decoct::DType::int64;
      a.x_labels = {labels[0].data(), (int64_t)labels[0].size(), 1, 1, type};
      a.y_labels = {labels[1].data(), (int64_t)labels[1].size(), 1, 1, type};
      a.label_cost = {(void*)kLabelCosts, kLabels, kLabels, kLabels, decoct::DType::float64};
    }
    a.blur = test.blur;
    a.scaling = test.scaling;
    a.diameter = test.diameter;
    a.reach_x = test.reach_x;
    a.reach_y = test.reach_y;
    a.mass = test.mass;
    a.tolerance = test.tolerance;
    a.max_iterations = test.max_iterations;
    a.warm = test.warm;
    a.need = test.need;
    a.terms = test.terms;
  }
  TransportInput(const TransportInput&) = delete;
};

inline Kernel transport_kernel(const TransportCase& test) {
  Kernel kernel;
  kernel.profile = test.power == 2 ? Profile::gaussian : Profile::laplacian;
  return kernel;
}

// What a segment comes to: of the cross term f and g, of the self terms f_self and g_self; derivatives of
// all.
struct TransportSolution {
  std::vector<double> f, g, f_self, g_self, grad;  // grad: of x, then of y
  double value = 0, error = 0, most_cost = 1;
  int64_t iterations = 0;
};

// The labels of x are counted from 0, those of y from 2. first(on_x): what a warm start starts from.
inline TransportSolution solve_transport(const TransportCase& test, const Segment& s,
                                         const std::function<std::vector<double>(bool)>& first) {
  TransportSolution out;
  out.grad.assign((size_t)(s.n + s.m) * s.dim, 0);
  if (s.n == 0 || s.m == 0) return out;
  for (const int kind : {kTermXY, kTermXX, kTermYY}) {
    if (!(test.terms & kind)) continue;
    const bool rows_x = kind != kTermYY, columns_x = kind == kTermXX, symmetric = kind != kTermXY;
    TransportReference problem(test, s, rows_x, columns_x, 0, 2);
    TransportTerm term = problem.solve(symmetric, first(rows_x), first(columns_x));
    for (const double cost : problem.cost) out.most_cost = std::fmax(out.most_cost, cost);
    out.value += (symmetric ? -1 : 1) * term.value;
    out.error = std::fmax(out.error, term.error);
    out.iterations = term.iterations > out.iterations ? term.iterations : out.iterations;
    for (double& potential : term.f) potential += rows_x ? problem.shift : 0;
    if (!symmetric && test.mass == 0 && std::isinf(test.reach_x) && std::isinf(test.reach_y)) {
      double apart = 0, mass = 0;
      for (int i = 0; i < s.n + s.m; ++i) {
        apart += s.w[i] * (i < s.n ? term.f[i] : -term.g[i - s.n]);
        mass += s.w[i];
      }
      for (double& potential : term.f) potential -= apart / mass;
      for (double& potential : term.g) potential += apart / mass;
    }
    for (size_t e = 0; e < term.grad_f.size(); ++e)
      out.grad[(rows_x ? 0 : (size_t)s.n * s.dim) + e] += (symmetric ? -1 : 1) * term.grad_f[e];
    for (size_t e = 0; e < term.grad_g.size(); ++e) out.grad[(size_t)s.n * s.dim + e] += term.grad_g[e];
    (!symmetric ? out.f : rows_x ? out.f_self : out.g_self) = term.f;
    if (!symmetric) out.g = term.g;
  }
  return out;
}

}  // namespace reference
