// Transport for kernels_test.
#pragma once
#include "../native/transport_reference.h"
#include "kernel_checks.h"

namespace cases {

using reference::kLabels;
using reference::TransportCase;

inline TransportCase make_transport(const char* name, int power) {
  TransportCase test;
  test.name = name;
  test.power = power;
  return test;
}

inline std::vector<TransportCase> transport_cases(int power) {
  std::vector<TransportCase> cases(10, make_transport("balanced", power));
  cases[1].name = "reach";
  cases[1].reach_x = 1.5;
  cases[1].reach_y = 2;
  cases[2].name = "one reach";
  cases[2].reach_y = 2;
  cases[3].name = "partial";
  cases[3].mass = 0.3;
  cases[4].name = "labels";
  cases[4].labels = true;
  cases[5].name = "warm";
  cases[5].warm = true;
  cases[5].need = kNeedX;
  cases[6].name = "few";
  cases[6].max_iterations = 4;
  cases[6].diameter = 10;
  cases[6].need = 0;
  cases[7].name = "tolerance";
  cases[7].tolerance = 1e-3;
  cases[7].blur = 0.5;
  // Sums leave the range of exponents at once.
  cases[8].name = "sharp";
  cases[8].blur = 0.02;
  cases[8].diameter = 0.03;
  // So little mass is worth its way that sums of the last plan are out of range as well.
  cases[9].name = "far";
  cases[9].reach_x = cases[9].reach_y = 0.3;
  return cases;
}

template <class T>
struct TransportResults {
  std::vector<double> value, error;
  std::vector<int64_t> iterations;
  Grid<T> f, g, f_self, g_self, x, y;

  TransportResults(const Problem<T>& p, const TransportCase& test)
      : value(p.segments.size(), NAN), error(p.segments.size(), NAN), iterations(p.segments.size(), -1) {
    const int64_t n = p.x_offsets.back(), m = p.y_offsets.back(), dim = p.setup.shape.dim;
    const int64_t spare = p.setup.layout == Layout::packed ? 0 : 3;
    f = Grid<T>(n, 1);
    g = Grid<T>(m, 1);
    if (test.terms & kTermXX) f_self = Grid<T>(n, 1);
    if (test.terms & kTermYY) g_self = Grid<T>(m, 1);
    if (test.need & kNeedX) x = Grid<T>(n, dim, spare);
    if (test.need & kNeedY) y = Grid<T>(m, dim, spare);
    // Those of segments without rows on the other side are not written.
    for (Grid<T>* all : {&f, &g, &f_self, &g_self})
      for (size_t e = 0; e < all->data.size(); ++e) all->data[e] = test.warm ? first_potential((int)e) : T(0);
  }
  static T first_potential(int row) { return (T)(0.125 * (row % 5)); }
  bool same_bits(const TransportResults& o) const {
    const auto same = [](const auto& p, const auto& q) {
      return p.empty() || !std::memcmp(p.data(), q.data(), p.size() * sizeof p[0]);
    };
    return same(value, o.value) && same(error, o.error) && same(iterations, o.iterations) &&
           f.same_bits(o.f) && g.same_bits(o.g) && f_self.same_bits(o.f_self) && g_self.same_bits(o.g_self) &&
           x.same_bits(o.x) && y.same_bits(o.y);
  }
};

template <class T>
TransportResults<T> run_transport(Problem<T>& p, const TransportCase& test, Precision precision) {
  TransportResults<T> out(p, test);
  reference::TransportInput input(test, p.segments, p.clouds(reference::transport_kernel(test), nullptr));
  SinkhornArguments& a = input.arguments;
  a.value = out.value.data();
  a.error = out.error.data();
  a.iterations = out.iterations.data();
  a.f = out.f.matrix();
  a.g = out.g.matrix();
  a.f_self = out.f_self.matrix();
  a.g_self = out.g_self.matrix();
  a.grad_x = out.x.matrix();
  a.grad_y = out.y.matrix();
  Sizes sizes = p.sizes(Op::sinkhorn, test.need, test.terms);
  sizes.columns = test.labels ? kLabels : 1;
  execute(sizes, precision, [&](const Execution& e) { sinkhorn(a, e); });
  return out;
}

template <class T>
void test_transport(const std::string& group, const Setup& setup, const TransportCase& test,
                    Precision precision = Precision::highest, double slack = 1) {
  const std::string name = "transport " + group + (group.empty() ? "" : " ") + test.name +
                           " p=" + std::to_string(test.power) + " D=" + std::to_string(setup.shape.dim) +
                           " " + precision_name<T>(precision);
  if (!selected(name)) return;
  Problem<T> p(setup);
  const TransportResults<T> ours = in_all_orders(name, [&] { return run_transport(p, test, precision); });
  Bound values, potentials, gradients, errors;
  bool counted = true;
  for (size_t c = 0; c < p.segments.size(); ++c) {
    const reference::Segment& s = p.segments[c];
    const int64_t i0 = p.x_offsets[c], j0 = p.y_offsets[c];
    const auto start = [&](bool on_x) {
      std::vector<double> first((size_t)(on_x ? s.n : s.m));
      for (size_t i = 0; i < first.size() && test.warm; ++i)
        first[i] = (double)TransportResults<T>::first_potential((int)(i + (on_x ? i0 : j0)));
      return first;
    };
    const reference::TransportSolution exact = reference::solve_transport(test, s, start);
    const double size = exact.most_cost, allowed = slack * (sizeof(T) == 8 ? 1e-13 : 4e-6) * size;
    for (const auto& [found, wanted, first] :
         {std::tuple{&ours.f, &exact.f, i0}, std::tuple{&ours.g, &exact.g, j0},
          std::tuple{&ours.f_self, &exact.f_self, i0}, std::tuple{&ours.g_self, &exact.g_self, j0}})
      if (!wanted->empty())
        potentials.add(difference(*found, *wanted, first, 0, (int64_t)wanted->size()), allowed);
    double most = 0;
    for (const double e : exact.grad) most = std::fmax(most, std::fabs(e));
    const double least = 1.0 / std::fmax(1, std::fmax(s.n, s.m));
    // Exponents are rounded, by so much of the largest; the multiplier of a mass moves as they do, and the
    // potentials with both.
    const double rounding =
        (test.mass > 0 ? 3 : 1) * (sizeof(T) == 8 ? 1e-16 : 1e-7) * size / test.power_of(test.blur);
    const double unit =
        slack * ((sizeof(T) == 8 ? 1e-11 : 1e-5) + rounding) * (most + least * std::sqrt(size));
    if (test.need & kNeedX) gradients.add(difference(ours.x, exact.grad, i0, 0, s.n), unit);
    if (test.need & kNeedY) gradients.add(difference(ours.y, exact.grad, j0, s.n, s.m), unit);
    values.add(std::fabs(ours.value[c] - exact.value),
               slack * (sizeof(T) == 8 ? 1e-13 : 4e-6) * size * (1 + std::fabs(exact.value)));
    errors.add(std::fabs(ours.error[c] - exact.error),
               slack * ((sizeof(T) == 8 ? 1e-11 : 2e-6) + 10 * rounding) * (1 + exact.error));
    counted &= ours.iterations[c] == exact.iterations;
  }
  const std::string kind = precision_name<T>(precision) + " transport ";
  values.report(name + " value", kind + "value");
  potentials.report(name + " potentials", kind + "potentials");
  if (test.need) gradients.report(name + " rows", kind + "rows");
  errors.report(name + " error", kind + "error");
  check(counted, name + " iterations");
  check(ours.x.spare_untouched() && ours.y.spare_untouched(), name + " writes between rows");
}

}  // namespace cases
