// Barycentres against turns in naive double sums, and over threads.
#include <algorithm>

#include "characteristic_reference.h"
#include "problem.h"

namespace {

using characteristic_case::Numbers;

struct Setup {
  std::string name;
  std::vector<int> counts;        // rows of each measure
  std::vector<int64_t> measures;  // offsets of the groups
  std::vector<int64_t> points;    // offsets of their points
  int dim;
  bool learned;
  double blur;  // in units of the root of dim; far below 1, some points are out of the range of their sums
};

constexpr int kTurns = 3;
constexpr double kStep = 0.8;

struct Found {
  std::vector<double> points, masses, cost;
};

double log_sum(const std::vector<double>& terms) {
  const double most = *std::max_element(terms.begin(), terms.end());
  double sum = 0;
  for (double term : terms) sum += std::exp(term - most);
  return most + std::log(sum);
}

// The plan of one measure (n, k) without the mass that it has on the side of the points, log Q_j, and its
// value.
struct Exact {
  std::vector<double> plan, log_mass;
  double value = 0;
};

Exact exact_plan(const double* x, const std::vector<double>& y, const std::vector<double>& b, int n, int k,
                 int dim, double eps, bool learned) {
  std::vector<double> cost(n * k), f(n), g(k, 0.0), terms;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < k; ++j) {
      double square = 0;
      for (int d = 0; d < dim; ++d)
        square += (x[i * dim + d] - y[j * dim + d]) * (x[i * dim + d] - y[j * dim + d]);
      cost[i * k + j] = square / 2;
    }
  Exact found;
  for (int turn = 0; turn < (learned ? 1 : 20000); ++turn) {
    for (int i = 0; i < n; ++i) {
      terms.clear();
      for (int j = 0; j < k; ++j) terms.push_back(std::log(b[j]) + (g[j] - cost[i * k + j]) / eps);
      f[i] = -eps * log_sum(terms);
    }
    found.log_mass.clear();
    double moved = 0;
    for (int j = 0; j < k; ++j) {
      terms.clear();
      for (int i = 0; i < n; ++i) terms.push_back(-std::log(n) + (f[i] + g[j] - cost[i * k + j]) / eps);
      const double log_share = log_sum(terms);
      found.log_mass.push_back(std::log(b[j]) + log_share);
      if (learned) continue;
      g[j] -= eps * log_share;
      moved = std::max(moved, std::fabs(log_share));
    }
    if (moved < 1e-13) break;
  }
  found.plan.resize(n * k);
  for (int i = 0; i < n; ++i) found.value += f[i] / n;
  for (int j = 0; j < k; ++j) {
    if (!learned) found.value += b[j] * g[j], found.log_mass[j] = std::log(b[j]);
    double most = -INFINITY;
    for (int i = 0; i < n; ++i) most = std::max(most, f[i] - cost[i * k + j]);
    for (int i = 0; i < n; ++i) found.plan[i * k + j] = std::exp((f[i] - cost[i * k + j] - most) / eps);
  }
  return found;
}

Found exact(const Setup& s, const Numbers& x, const Numbers& start, const std::vector<double>& shares) {
  Found found;
  const double eps = s.blur * s.blur * s.dim;
  for (size_t g = 0; g + 1 < s.points.size(); ++g) {
    const int k = (int)(s.points[g + 1] - s.points[g]);
    std::vector<double> y(start.values.begin() + s.points[g] * s.dim,
                          start.values.begin() + s.points[g + 1] * s.dim),
        b(k, 1.0 / k);
    double all = 0, value = 0;
    for (int64_t m = s.measures[g]; m < s.measures[g + 1]; ++m) all += s.counts[m] ? shares[m] : 0;
    for (int turn = 0; k && all > 0 && turn <= kTurns; ++turn) {
      std::vector<double> sums(k * s.dim, 0.0), mass(k, 0.0);
      value = 0;
      for (int64_t m = s.measures[g]; m < s.measures[g + 1]; ++m) {
        const int n = s.counts[m];
        if (n == 0) continue;
        int64_t first = 0;
        for (int64_t before = 0; before < m; ++before) first += s.counts[before];
        const double* rows = x.values.data() + first * s.dim;
        const Exact plan = exact_plan(rows, y, b, n, k, s.dim, eps, s.learned);
        value += shares[m] / all * plan.value;
        for (int j = 0; j < k; ++j) {
          const double share = shares[m] / all * std::exp(plan.log_mass[j]);
          double whole = 0;
          for (int i = 0; i < n; ++i) whole += plan.plan[i * k + j];
          mass[j] += share;
          for (int i = 0; i < n; ++i)
            for (int d = 0; d < s.dim; ++d)
              sums[j * s.dim + d] += share * plan.plan[i * k + j] / whole * rows[i * s.dim + d];
        }
      }
      if (turn == kTurns) break;
      for (int j = 0; j < k; ++j) {
        for (int d = 0; d < s.dim; ++d)
          if (mass[j] > 0) y[j * s.dim + d] += kStep * (sums[j * s.dim + d] / mass[j] - y[j * s.dim + d]);
        if (s.learned) b[j] = mass[j];
      }
    }
    found.points.insert(found.points.end(), y.begin(), y.end());
    found.masses.insert(found.masses.end(), b.begin(), b.end());
    found.cost.push_back(value);
  }
  return found;
}

template <class T>
struct Result {
  std::vector<T> points, masses;
  std::vector<double> cost, movement;
  std::vector<int64_t> made;

  bool operator==(const Result& o) const {
    return points == o.points && masses == o.masses && cost == o.cost && movement == o.movement &&
           made == o.made;
  }
};

template <class T>
Result<T> run(const Setup& s, Numbers& x, const Numbers& start, const std::vector<double>& shares,
              int threads) {
  Result<T> r;
  r.points.assign(start.values.begin(), start.values.end());
  const size_t groups = s.points.size() - 1;
  for (size_t g = 0; g < groups; ++g)
    r.masses.insert(r.masses.end(), (size_t)(s.points[g + 1] - s.points[g]),
                    T(1) / (T)(s.points[g + 1] - s.points[g]));
  r.cost = r.movement = unwritten<double>(groups);
  r.made.assign(groups, -1);
  std::vector<int64_t> ends{0};
  for (int count : s.counts) ends.push_back(ends.back() + count);
  BarycenterArguments a{};
  a.x = x.matrix();
  a.x_offsets = ends.data();
  a.measure_offsets = s.measures.data();
  a.point_offsets = s.points.data();
  a.measures = (int64_t)s.counts.size();
  a.groups = (int64_t)groups;
  a.shares = shares.data();
  a.points = matrix(r.points, s.points.back(), s.dim);
  a.masses = matrix(r.masses, s.points.back(), 1);
  a.learned = s.learned;
  a.blur = a.first_blur = s.blur * std::sqrt(s.dim);
  a.scaling = 0.5;
  a.step = kStep;
  a.tolerance = 0;
  a.marginal_tolerance = sizeof(T) == 8 ? 1e-13 : 1e-7;
  a.iterations = kTurns;
  a.inner_iterations = 20000;
  a.cost = r.cost.data();
  a.movement = r.movement.data();
  a.made = r.made.data();
  Workspace workspace(barycenter_workspace_bytes(a, threads));
  Execution e;
  e.workspace = workspace.data;
  e.workspace_bytes = barycenter_workspace_bytes(a, threads);
  e.threads = threads;
  barycenter(a, e);
  return r;
}

template <class T>
void test_setup(const Setup& s, DType rows) {
  const int64_t count = [&] {
    int64_t all = 0;
    for (int n : s.counts) all += n;
    return all;
  }();
  Numbers x(count, s.dim, 3, rows, 1, 7), start(s.points.back(), s.dim, 0, DType::float64, 1, 8);
  std::vector<double> shares;
  for (size_t m = 0; m < s.counts.size(); ++m) shares.push_back(0.5 + 0.25 * (double)(m % 4));
  const std::string name =
      "barycentre " + s.name + (s.learned ? " learned " : " ") + std::to_string((int)rows);
  const Result<T> one = run<T>(s, x, start, shares, 1);
  for (const int threads : {2, 3}) check(run<T>(s, x, start, shares, threads) == one, name + " on threads");
  const Found wanted = exact(s, x, start, shares);
  // An exponent is a cost of some dim over eps = blur^2 dim, and as wrong as that many units in the last
  // place.
  const double allowed =
      (sizeof(T) == 8 ? 1e-14 : 4e-7) * 8 / (s.blur * s.blur) * kTurns + (sizeof(T) == 8 ? 1e-10 : 0);
  double worst = difference(one.points, wanted.points, 0, 0, s.points.back(), s.dim);
  worst = std::max(worst, difference(one.masses, wanted.masses, 0, 0, s.points.back(), 1));
  for (size_t g = 0; g < one.cost.size(); ++g)
    worst = std::max(worst, std::fabs(one.cost[g] - wanted.cost[g]) / s.dim);
  check(worst <= allowed, name, worst, allowed);
}

}  // namespace

void test_barycenter() {
  for (const bool learned : {false, true}) {
    const std::vector<int64_t> each{0, 1, 2, 3, 4}, shared{0, 3, 4};
    // Less and more rows than a vector, a block and a pass take; points that are one, a few and several
    // blocks.
    const std::vector<Setup> setups = {
        {"ragged", {5, 0, 70, 33}, each, {0, 3, 5, 5, 16}, 9, learned, 0.7},
        {"narrow", {40, 3, 17, 1}, each, {0, 4, 6, 7, 9}, 3, learned, 0.6},
        {"many points", {530}, {0, 1}, {0, 23}, 19, learned, 0.8},
        {"far points", {60}, {0, 1}, {0, 4}, 12, learned, 0.08},
        {"measures",
         {31, 8, 1, 20},
         learned ? each : shared,
         learned ? std::vector<int64_t>{0, 2, 4, 5, 7} : std::vector<int64_t>{0, 4, 9},
         33,
         learned,
         0.7}};
    for (const Setup& s : setups) {
      test_setup<float>(s, DType::float32);
      test_setup<float>(s, DType::bfloat16);
      test_setup<double>(s, DType::float64);
    }
    Setup long_rows{"threads", {1100}, {0, 1}, {0, 13}, 40, learned, 0.9};
    test_setup<float>(long_rows, DType::float32);
  }
}
