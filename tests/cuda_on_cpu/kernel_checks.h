// How kernels_test holds a call's results: to naive double sums within a bound, and to the same bits in every
// order of threads and blocks.
#pragma once
#include <cstdio>
#include <map>

#include "kernel_problem.h"

namespace cases {

inline int passed = 0, failed = 0;
inline bool quick = false;
inline std::string only;
inline std::map<std::string, double> closest;  // to its bound, by precision and kind of result

inline void check(bool good, const std::string& what, double error = 0, double allowed = 0) {
  ++(good ? passed : failed);
  if (!good) std::printf("FAILED %s: error %.3g, allowed %.3g\n", what.c_str(), error, allowed);
}

template <class T>
std::string precision_name(Precision precision) {
  const char* const names[] = {"highest", "high", "medium"};
  return sizeof(T) == 8 ? "double" : names[(int)precision];
}

inline bool selected(const std::string& name) {
  return only.empty() || name.find(only) != std::string::npos;
}

inline std::vector<std::string> orders() {
  static const char* const given = std::getenv("DECOCT_CUDA_ON_CPU_ORDER");
  static const std::string one = given ? given : "";
  if (!one.empty()) return {one};
  return quick ? std::vector<std::string>{"forward", "reverse"} : std::vector<std::string>{"forward", "20"};
}

// The results, which must have the same bits in all orders.
template <class Run>
auto in_all_orders(const std::string& name, const Run& run) {
  const std::vector<std::string> all = orders();
  setenv("DECOCT_CUDA_ON_CPU_ORDER", all[0].c_str(), 1);
  auto first = run();
  for (size_t o = 1; o < all.size(); ++o) {
    setenv("DECOCT_CUDA_ON_CPU_ORDER", all[o].c_str(), 1);
    check(run().same_bits(first), name + " in order " + all[o]);
  }
  return first;
}

// Largest difference of a segment's part of ours from rows [begin, begin + rows) of theirs. NaN is infinite.
template <class T>
double difference(const Grid<T>& ours, const std::vector<double>& theirs, int64_t first, int64_t begin,
                  int64_t rows) {
  double worst = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < ours.columns; ++d) {
      const double error = std::fabs((double)ours.at(first + i, d) - theirs[(begin + i) * ours.columns + d]);
      worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
    }
  return worst;
}

// Errors against bounds of one kind of result; segments differ in size, so the one closest to its bound
// stays.
struct Bound {
  double error = 0, allowed = 0;

  void add(double e, double bound) {
    if (std::isnan(e)) e = INFINITY;
    if (allowed == 0 && error == 0)
      error = e, allowed = bound;
    else if (e * allowed > error * bound)
      error = e, allowed = bound;
  }
  void report(const std::string& name, const std::string& kind) const {
    check(error <= allowed, name, error, allowed);
    if (allowed > 0) closest[kind] = std::fmax(closest[kind], error / allowed);
  }
};

template <class T>
void compare(const Problem<T>& p, const Results<T>& ours, const std::vector<reference::Sums>& exact, int need,
             const std::string& name, double unit, const std::string& kind, bool values) {
  Bound value, rows, weights;
  for (size_t c = 0; c < exact.size(); ++c) {
    const reference::Sums& e = exact[c];
    const reference::Segment& s = p.segments[c];
    const int64_t i = p.x_offsets[c], j = p.y_offsets[c];
    if (values) value.add(std::fabs(ours.value[c] - e.value), unit * e.magnitude);
    if (need & kNeedX) rows.add(difference(ours.x, e.grad, i, 0, s.n), unit * e.grad_magnitude);
    if (need & kNeedY) rows.add(difference(ours.y, e.grad, j, s.n, s.m), unit * e.grad_magnitude);
    if (need & kNeedA) weights.add(difference(ours.a, e.grad_weight, i, 0, s.n), unit * e.weight_magnitude);
    if (need & kNeedB) weights.add(difference(ours.b, e.grad_weight, j, s.n, s.m), unit * e.weight_magnitude);
  }
  if (values) value.report(name + " value", kind + " value");
  if (need & (kNeedX | kNeedY)) rows.report(name + " rows", kind + " rows");
  if (need & (kNeedA | kNeedB)) weights.report(name + " weights", kind + " weights");
  check(ours.spare_untouched(), name + " writes between rows");
}

template <class T>
double unit_of(Precision precision) {
  if (sizeof(T) == 8) return 2e-14;
  return precision == Precision::highest ? 4e-6 : precision == Precision::high ? 0x1p-10 : 0x1p-7;
}

void test_norms();  // norm_test.cpp

inline bool is_pointed(const Kernel& kernel) {
  return kernel.profile == Profile::laplacian || kernel.profile == Profile::energy;
}

template <class T>
std::string name_of(const std::string& group, const Setup& s, const Case& test, Precision precision) {
  return group + (s.potentials ? " plan " : " ") + test.name + " D=" + std::to_string(s.shape.dim) + " " +
         precision_name<T>(precision);
}

template <class T>
void test_sums(const std::string& group, Setup setup, const Case& test, const std::vector<int>& needs,
               Precision precision = Precision::highest) {
  const std::string name = name_of<T>(group, setup, test, precision);
  if (!selected(name)) return;
  // Rounded points that are close have another distance, to which these kernels have a steep slope.
  if (precision != Precision::highest && is_pointed(test.kernel) && setup.near == Near::close)
    setup.near = Near::copies;
  Problem<T> p(setup);
  std::vector<reference::Sums> exact;
  for (const auto& s : p.segments) exact.push_back(reference::sums(s, test.kernel, p.bandwidth(s), test.c));
  for (const int need : needs) {
    const std::string label = name + " need " + std::to_string(need);
    const Results<T> ours = in_all_orders(label, [&] { return run_sums(p, test, need, precision); });
    compare(p, ours, exact, need, label, unit_of<T>(precision), precision_name<T>(precision), true);
    for (size_t c = 0; c < p.segments.size() && setup.from_data; ++c)
      check(std::fabs(ours.bandwidth[c] - p.bandwidth(p.segments[c])) <= 1e-6 * ours.bandwidth[c],
            label + " bandwidth");
  }
}

template <class T>
reference::Sums exact_hvp(const Problem<T>& p, const Case& test, size_t c, const Tangents<T>& tangents) {
  const reference::Segment& s = p.segments[c];
  std::vector<double> moves, weight_moves;
  for (const bool on_x : {true, false})
    for (int i = 0; i < (on_x ? s.n : s.m); ++i) {
      const int64_t row = (on_x ? p.x_offsets : p.y_offsets)[c] + i;
      const Grid<T>&points = tangents[on_x ? 0 : 1], &weights = tangents[on_x ? 2 : 3];
      for (int d = 0; d < s.dim; ++d) moves.push_back(points.rows ? (double)points.at(row, d) : 0);
      weight_moves.push_back(weights.rows ? (double)weights.at(row, 0) : 0);
    }
  reference::Sums e = reference::hessian_product(s, test.kernel, p.length(), test.c, moves, weight_moves);
  e.grad_magnitude = e.weight_magnitude = 0;
  for (double g : e.grad) e.grad_magnitude = std::fmax(e.grad_magnitude, std::fabs(g));
  for (double g : e.grad_weight) e.weight_magnitude = std::fmax(e.weight_magnitude, std::fabs(g));
  return e;
}

// `given`: of which arguments there are tangents, as bits of Need.
template <class T>
void draw_tangents(const Problem<T>& p, int given, Tangents<T>& tangents) {
  const int64_t n = p.x_offsets.back(), m = p.y_offsets.back(), dim = p.setup.shape.dim;
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  for (int k = 0; k < 4; ++k) {
    if (given & 1 << k) tangents[k] = Grid<T>(k % 2 ? m : n, k < 2 ? dim : 1);
    // Of a size that leaves neither the points' nor the weights' share too small to be seen.
    for (T& value : tangents[k].data) value = (T)(normal(random) * (k < 2 ? p.setup.size : 0.02));
  }
}

template <class T>
void test_hvp(const Setup& setup, const Case& test, const std::vector<int>& needs, int given,
              Precision precision = Precision::highest) {
  const std::string name = name_of<T>("hvp", setup, test, precision) + " given " + std::to_string(given);
  if (!selected(name)) return;
  Problem<T> p(setup);
  Tangents<T> tangents;
  draw_tangents(p, given, tangents);
  std::vector<reference::Sums> exact;
  for (size_t c = 0; c < p.segments.size(); ++c) exact.push_back(exact_hvp(p, test, c, tangents));
  // In double the differences of the reference are what is off.
  const double unit = sizeof(T) == 8 ? 3e-8 : 2 * unit_of<T>(precision);
  for (const int need : needs) {
    const std::string label = name + " need " + std::to_string(need);
    const Results<T> ours = in_all_orders(label, [&] { return run_hvp(p, test, need, precision, tangents); });
    compare(p, ours, exact, need, label, unit, precision_name<T>(precision) + " hvp", false);
  }
}

template <class T>
Grid<T> run_matvec(Problem<T>& p, const Case& test, Grid<T>& v, Precision precision) {
  std::vector<double> bandwidth(p.segments.size(), p.length());
  // One vector's product lies without gaps, as an argument of weights does.
  Grid<T> out(p.x_offsets.back(), v.columns, v.columns == 1 ? 0 : v.stride - v.columns);
  MatvecArguments arguments{p.clouds(test.kernel, bandwidth.data()), v.matrix(), out.matrix()};
  arguments.clouds.a = arguments.clouds.b = Matrix{};
  Sizes sizes = p.sizes(Op::matvec, 0, kTermXY);
  sizes.columns = v.columns;
  execute(sizes, precision, [&](const Execution& e) { kernel_matvec(arguments, e); });
  return out;
}

template <class T>
void compare_matvec(const Problem<T>& p, const Case& test, const Grid<T>& v, const Grid<T>& out, double unit,
                    const std::string& name, const std::string& kind) {
  Bound bound;
  for (size_t c = 0; c < p.segments.size(); ++c) {
    const reference::Segment& s = p.segments[c];
    for (int i = 0; i < s.n; ++i) {
      std::vector<double> total((size_t)v.columns), size((size_t)v.columns);
      for (int j = 0; j < s.m; ++j) {
        const double r = pair_argument(s, is_radial(test.kernel.profile), i, s.n + j),
                     k = reference::evaluate(test.kernel, p.length(), r).k * s.factor(i, s.n + j);
        for (int64_t e = 0; e < v.columns; ++e) {
          const double part = k * (double)v.at(p.y_offsets[c] + j, e);
          total[e] += part;
          size[e] += std::fabs(part);
        }
      }
      for (int64_t e = 0; e < v.columns; ++e)
        bound.add(std::fabs(total[e] - (double)out.at(p.x_offsets[c] + i, e)), unit * size[e]);
    }
  }
  bound.report(name, kind + " matvec");
  check(out.spare_untouched(), name + " writes between rows");
}

template <class T>
void test_matvec(Setup setup, const Case& test, int columns, int spare,
                 Precision precision = Precision::highest) {
  const std::string name =
      name_of<T>("matvec", setup, test, precision) + " columns " + std::to_string(columns);
  if (!selected(name)) return;
  Problem<T> p(setup);
  Grid<T> v(p.y_offsets.back(), columns, spare);
  std::mt19937 random(6);
  std::normal_distribution<double> normal;
  for (int64_t j = 0; j < v.rows; ++j)
    for (int e = 0; e < columns; ++e) v.data[j * v.stride + e] = (T)normal(random);
  const Grid<T> out = in_all_orders(name, [&] { return run_matvec(p, test, v, precision); });
  compare_matvec(p, test, v, out, unit_of<T>(precision), name, precision_name<T>(precision));
}

// Sums, if there are any, against exact ones whose terms have these sizes.
template <class T>
void compare_sums(const Grid<T>& ours, const std::vector<double>& exact, const std::vector<double>& size,
                  double unit, const std::string& name, const std::string& kind) {
  if (ours.rows * ours.columns == 0) return;
  Bound bound;
  for (int64_t c = 0; c < ours.rows; ++c)
    for (int64_t k = 0; k < ours.columns; ++k) {
      const size_t at = (size_t)(c * ours.columns + k);
      // Without terms there is nothing to be off.
      const double error = std::fabs((double)ours.at(c, k) - exact[at]);
      if (size[at] > 0 || !(error == 0)) bound.add(error, unit * size[at]);
    }
  bound.report(name, kind);
  check(ours.spare_untouched(), name + " writes between rows");
}

}  // namespace cases
