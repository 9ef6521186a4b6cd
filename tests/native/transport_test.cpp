// Sinkhorn's iteration against the same iteration in logarithms and double precision, pair by pair.
#include <algorithm>

#include "problem.h"
#include "transport_reference.h"

void test_transport();

namespace {

using reference::kLabels;
using reference::TransportCase;
using reference::TransportSolution;

// What a warm start starts from.
double first_potential(int64_t row) {
  return 0.125 * (double)(row % 5);
}

template <class T>
struct Found {
  std::vector<double> value, error;
  std::vector<int64_t> iterations;
  std::vector<T> f, g, f_self, g_self, x, y;

  bool same_bits(const Found& o) const {
    const auto same = [](const auto& p, const auto& q) {
      return p.size() == q.size() && (p.empty() || !std::memcmp(p.data(), q.data(), p.size() * sizeof p[0]));
    };
    return same(value, o.value) && same(error, o.error) && same(iterations, o.iterations) && same(f, o.f) &&
           same(g, o.g) && same(f_self, o.f_self) && same(g_self, o.g_self) && same(x, o.x) && same(y, o.y);
  }
};

template <class T>
Found<T> run(Problem<T>& p, const TransportCase& test, int threads, int64_t budget) {
  const size_t n = p.x_offsets.back(), m = p.y_offsets.back(), segments = p.segments.size();
  Found<T> out{unwritten<double>(segments),
               unwritten<double>(segments),
               std::vector<int64_t>(segments),
               std::vector<T>(n),
               std::vector<T>(m),
               std::vector<T>(n),
               std::vector<T>(m),
               unwritten<T>(test.need & kNeedX ? n * p.shape.dim : 0),
               unwritten<T>(test.need & kNeedY ? m * p.shape.dim : 0)};
  for (std::vector<T>* all : {&out.f, &out.g, &out.f_self, &out.g_self})
    for (size_t i = 0; i < all->size() && test.warm; ++i) (*all)[i] = (T)first_potential((int64_t)i);
  reference::TransportInput input(test, p.segments, p.clouds(reference::transport_kernel(test), nullptr));
  SinkhornArguments& a = input.arguments;
  a.value = out.value.data();
  a.error = out.error.data();
  a.iterations = out.iterations.data();
  a.f = matrix(out.f, n, 1);
  a.g = matrix(out.g, m, 1);
  a.f_self = matrix(out.f_self, n, 1);
  a.g_self = matrix(out.g_self, m, 1);
  a.grad_x = matrix(out.x, n, p.shape.dim);
  a.grad_y = matrix(out.y, m, p.shape.dim);
  const Sizes sizes =
      sizes_of(Op::sinkhorn, a.clouds, test.labels ? kLabels : 1, test.need, test.terms, threads, budget);
  execute(sizes, [&](const Execution& e) { sinkhorn(a, e); });
  return out;
}

template <class T>
void compare(const Problem<T>& p, const TransportCase& test, const std::vector<TransportSolution>& solutions,
             const Found<T>& found, const std::string& name) {
  for (size_t c = 0; c < p.segments.size(); ++c) {
    const reference::Segment& s = p.segments[c];
    const TransportSolution& exact = solutions[c];
    const std::string label = name + " segment " + std::to_string(c);
    const int64_t i0 = p.x_offsets[c], j0 = p.y_offsets[c];
    // Exponents are rounded, by so much of the largest.
    const double rounding = (sizeof(T) == 8 ? 1e-16 : 1e-7) * exact.most_cost / test.power_of(test.blur);
    const double allowed = (sizeof(T) == 8 ? 1e-12 : 1e-5) * exact.most_cost;
    const double error = std::fabs(found.value[c] - exact.value);
    check(error <= allowed, label + " value", error, allowed);
    double worst = 0;
    for (const auto& [ours, theirs, first] :
         {std::tuple{&found.f, &exact.f, i0}, std::tuple{&found.g, &exact.g, j0},
          std::tuple{&found.f_self, &exact.f_self, i0}, std::tuple{&found.g_self, &exact.g_self, j0}})
      worst = std::fmax(worst, difference(*ours, *theirs, first, 0, (int64_t)theirs->size(), 1));
    check(worst <= allowed, label + " potentials", worst, allowed);
    double most = 0;
    for (const double e : exact.grad) most = std::fmax(most, std::fabs(e));
    const double unit = ((sizeof(T) == 8 ? 1e-10 : 1e-5) + rounding) *
                        (most + std::sqrt(exact.most_cost) / std::fmax(1, std::fmax(s.n, s.m)));
    for (const auto& [ours, need, first, begin, rows] :
         {std::tuple{&found.x, (int)kNeedX, i0, 0, s.n}, std::tuple{&found.y, (int)kNeedY, j0, s.n, s.m}}) {
      if (!(test.need & need)) continue;
      const double gradient = difference(*ours, exact.grad, first, begin, rows, s.dim);
      check(gradient <= unit, label + " gradient", gradient, unit);
    }
    const double missed = std::fabs(found.error[c] - exact.error),
                 bound = ((sizeof(T) == 8 ? 1e-10 : 1e-5) + 10 * rounding) * (1 + exact.error);
    check(missed <= bound, label + " error", missed, bound);
    // With a tolerance in reach, rounding may decide on one iteration more.
    check(std::llabs(found.iterations[c] - exact.iterations) <= (test.tolerance > 0), label + " iterations");
  }
}

template <class T>
void test_case(const Shape& shape, TransportCase test, bool bfloat) {
  Problem<T> p(shape, bfloat, 23);
  std::vector<TransportSolution> exact;
  for (size_t c = 0; c < p.segments.size(); ++c)
    exact.push_back(reference::solve_transport(test, p.segments[c], [&](bool on_x) {
      std::vector<double> first((size_t)(on_x ? p.segments[c].n : p.segments[c].m));
      for (size_t i = 0; i < first.size() && test.warm; ++i)
        first[i] = first_potential((int64_t)i + (on_x ? p.x_offsets[c] : p.y_offsets[c]));
      return first;
    }));
  for (const int need : {0, (int)kNeedY, kNeedX | kNeedY}) {
    test.need = need;
    const std::string name = "transport " + test.name + " p=" + std::to_string(test.power) +
                             " D=" + std::to_string(shape.dim) + " need " + std::to_string(need) +
                             (sizeof(T) == 8 ? " double"
                              : bfloat       ? " bfloat16"
                                             : " float");
    const Found<T> one = run(p, test, 1, 0);
    compare(p, test, exact, one, name);
    for (const int threads : {2, 3}) check(run(p, test, threads, 0).same_bits(one), name + " threads");
  }
}

}  // namespace

void test_transport() {
  const Shape ragged{{0, 1, 7, 96, 97, 5, 31, 2}, {3, 1, 33, 40, 0, 2, 32, 1}, 17};
  const Shape narrow{{65, 33}, {31, 97}, 3}, split{{3, 301}, {9, 190}, 37};
  std::vector<TransportCase> cases(11);
  for (TransportCase& test : cases) test.blur = 1;
  cases[0].name = "balanced";
  cases[1].name = "balanced";
  cases[1].power = 1;
  cases[1].blur = 0.5;
  cases[2].name = "without self terms";
  cases[2].terms = kTermXY;
  cases[3].name = "unbalanced";
  cases[3].reach_x = 2;
  cases[3].reach_y = 3;
  cases[4].name = "one-sided";
  cases[4].power = 1;
  cases[4].reach_y = 2;
  cases[5].name = "partial";
  cases[5].mass = 0.6;
  cases[5].terms = kTermXY;
  cases[6].name = "labelled";
  cases[6].labels = true;
  cases[7].name = "labelled";
  cases[7].labels = true;
  cases[7].power = 1;
  cases[8].name = "warm";
  cases[8].warm = true;
  cases[9].name = "to a tolerance";
  cases[9].tolerance = 1e-4;
  cases[10].name = "of little blur";
  cases[10].blur = 0.05;
  for (const TransportCase& test : cases)
    for (const Shape* shape : {&ragged, &narrow, &split}) {
      test_case<double>(*shape, test, false);
      if (test.blur < 0.1) continue;  // float32 has no room for these exponents
      test_case<float>(*shape, test, false);
      if (shape == &ragged) test_case<float>(*shape, test, true);
    }
}
