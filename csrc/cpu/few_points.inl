// Plans between many rows x_i and few points y_j, with p = 2 and eps = blur^2, for barycentres
// (barycenter.inl).
//
// With e_ij = log2(b_j) + (g_j - |y_j|^2 / 2 + <x_i, y_j>) / (eps ln 2) and the rows' marginal kept exactly,
//   P_ij = a_i 2^e_ij / sum_k 2^e_ik,      Q_j = sum_i P_ij,
// so that one pass over the pairs, with one exponential each, is a whole iteration of Sinkhorn's algorithm,
//   g_j += eps log(b_j / Q_j),
// and no potential of a row is formed: its square and its potential are the same for all points. The largest
// exponent of a row is taken off, so that no row's sum is out of range. A point so far from all rows that its
// Q_j is gets its sum from logarithms (`far_point`). Of few points Newton's step (newton.inl) takes the place
// of that iteration once little is missed: some four passes a turn instead of 23. A step after which more
// is missed is taken back and a quarter of it tried.
//
// Shapes: x (N, D), y (k, D), scores and plan (k, N). Operations: 2 N k D for the scores, and as many for the
// sums of rows that the plan weights; a pass some 30 instructions a vector of pairs, and 2 N k^2 operations
// for Newton's step. Bytes: the rows are read twice, once forward for the scores and once backward for the
// sums, so that what a second-level cache holds of them is still there; neither product needs another copy of
// them.
#pragma once
#include "few_products.inl"
#include "newton.inl"
#include "segment.inl"
#include "stream.inl"

namespace decoct {
namespace DECOCT_ISA {

constexpr int64_t kPassRows = 512;  // of a task, whose sums are of type T within each lane
constexpr int64_t kSumRows = 64;    // whose weighted sums are added at a time
constexpr double kRelaxation = 1.6, kRelaxedFrom = 0.1;
constexpr double kNewtonFrom = 0.5, kLeastPart = 0.01, kReach = 3;  // of the step, in units of eps
constexpr int64_t kNewtonPoints = 64;  // at most, for which Newton's step takes no longer than a few passes
constexpr int64_t kParallelWork = int64_t{1} << 16;

// Sums below it have lost terms.
template <class T>
constexpr double kLeastMass = sizeof(T) == 4 ? 1e-28 : 1e-280;

// A measure's rows, packed once, beside a copy of the points of its barycentre.
template <class T>
struct FewPoints {
  Segment<T> s;  // x: the rows; y: the points
  T *scores,
      *plan;  // (k, stride): <x_i, y_j>, of few columns -|x_i - y_j|^2 / 2; P_ij, a row's in its own unit
  int64_t stride;
  T* bias;                       // (k)
  double *g, *mass;              // (k): potentials; sums of the plan's rows in the unit that these are in
  double* log_masses;            // (k): log Q_j
  T* row_logs;                   // (padded N): log2 sum_j 2^e_ij
  double* parts;                 // (tasks, k + 1): of Q, and of the sum of a_i log2 sum_j 2^e_ij
  T* products;                   // (k, k): sum_i P_ij P_il / a_i; of few enough points
  double *system, *move, *kept;  // (k, k), (k), (k): Newton's equations and step, and potentials before it
  double* column_sums;
  double share;  // of the measure in its group
  bool finite;

  static int64_t tasks_of(int64_t rows) { return (rows + kPassRows - 1) / kPassRows; }

  void layout(Arena& arena, int64_t rows, int64_t points, int64_t dim) {
    s.n = s.x.rows = rows;
    s.m = s.y.rows = points;
    s.x.dim = s.y.dim = dim;
    s.x.slabs = s.y.slabs = 1;
    s.x.wants_grad = s.x.wants_weight = s.y.wants_weight = false;
    s.y.wants_grad = true;
    s.centre = arena.take<T>(dim);
    cloud_layout(s.x, arena, false, rows);
    cloud_layout(s.y, arena, false, points);
    stride = padded_stride<T>(rows < kSmallDim ? kSmallDim : rows);
    scores = arena.take<T>(points * stride);
    plan = arena.take<T>(points * stride);
    bias = arena.take<T>(points);
    g = arena.take<double>(points);
    mass = arena.take<double>(points);
    log_masses = arena.take<double>(points);
    row_logs = arena.take<T>(stride);
    parts = arena.take<double>(tasks_of(rows) * (points + 1));
    column_sums = arena.take<double>(dim);
    const int64_t few = points <= kNewtonPoints ? points : 0;
    products = arena.take<T>(few * few);
    system = arena.take<double>(few * few);
    move = arena.take<double>(few);
    kept = arena.take<double>(few);
  }
};

enum class Pass {
  masses,  // Q alone
  roots,   // and P_ij / sqrt(a_i) into the plan
  plan     // and P, and the logarithms of the rows' sums
};

// Exponents and sums of a pass for one worker.
template <class T>
static int64_t lanes_bytes(int64_t points) {
  return round_up(2 * points * width<T> * (int64_t)sizeof(T), 64);
}

// What is done with a measure at one eps.
template <class T>
struct FewPointsPlan {
  FewPoints<T>& m;
  char* lanes;  // lanes_bytes for each worker
  int threads;
  double eps;

  int64_t k() const { return m.s.m; }
  int64_t n() const { return m.s.n; }
  int64_t dim() const { return m.s.x.dim; }
  bool small() const { return dim() < kSmallDim; }
  double unit() const { return m.s.spread * m.s.spread; }
  double rate() const { return kLog2e * unit() / eps; }
  const T* weights() const { return m.s.y.weights; }
  int threads_for(int64_t work) const { return work < kParallelWork ? 1 : threads; }

  // ---- scores

  void score() const {
    const Cloud<T>&x = m.s.x, &y = m.s.y;
    for_tasks(FewPoints<T>::tasks_of(n()), threads_for(n() * k() * dim()), [&](int64_t task, int) {
      const int64_t begin = task * kPassRows, end = begin + kPassRows < n() ? begin + kPassRows : n();
      if (small()) return score_by_differences(begin, end);
      for (int64_t i = begin; i < end; i += kDotRows) {
        const int64_t rows = end - i < kDotRows ? end - i : kDotRows;
        over_blocks(k(), kDotPoints, [&](int64_t j, int64_t count) {
          dot_rows<T>(rows, count, x.points + i * x.stride, x.stride, y.points + j * y.stride, y.stride,
                      round_up(dim(), width<T>), m.scores + j * m.stride + i, m.stride);
        });
      }
    });
  }

  // Of so few columns products would cancel, and their length is no matter.
  void score_by_differences(int64_t begin, int64_t end) const {
    const Cloud<T>&x = m.s.x, &y = m.s.y;
    for (int64_t j = 0; j < k(); ++j)
      for (int64_t i = begin; i < end; ++i) {
        T sum = 0;
        for (int64_t d = 0; d < dim(); ++d) {
          const T difference = x.points[i * x.stride + d] - y.points[j * y.stride + d];
          sum += difference * difference;
        }
        m.scores[j * m.stride + i] = sum * T(-0.5);
      }
  }

  // ---- passes over the pairs

  // The part of an exponent that depends on the point alone.
  double point_bias(int64_t j) const {
    const double norm = small() ? 0.0 : 0.5 * (double)m.s.y.norms[j], weight = (double)weights()[j];
    const double logarithm = weight > 0 ? __builtin_log2(weight) : weight == 0 ? (double)kNothing<T> : weight;
    return logarithm + m.g[j] * (kLog2e / eps) - norm * rate();
  }

  // Q_j into `mass`. Returns the sum of a_i log2 sum_j 2^e_ij with the plan.
  template <Pass What>
  double pass() const {
    const int64_t tasks = FewPoints<T>::tasks_of(n()), width_of_parts = k() + 1;
    for (int64_t j = 0; j < k(); ++j) m.bias[j] = (T)point_bias(j);
    for_tasks(tasks, threads_for(n() * k() * 4), [&](int64_t task, int worker) {
      const int64_t begin = task * kPassRows, end = begin + kPassRows < n() ? begin + kPassRows : n();
      pass_rows<What>(begin, end, (T*)(lanes + worker * lanes_bytes<T>(k())),
                      m.parts + task * width_of_parts);
    });
    double logs = 0;
    std::memset(m.mass, 0, k() * sizeof(double));
    for (int64_t task = 0; task < tasks; ++task) {
      const double* part = m.parts + task * width_of_parts;
      for (int64_t j = 0; j < k(); ++j) m.mass[j] += part[j];
      logs += part[k()];
    }
    return logs;
  }

  template <Pass What>
  void pass_rows(int64_t begin, int64_t end, T* powers, double* sums) const {
    T* totals = powers + k() * width<T>;
    std::memset(totals, 0, k() * width<T> * sizeof(T));
    const T factor = (T)rate();
    vec<T> logs = {};
    for (int64_t i = begin; i < end; i += width<T>) {
      vec<T> most = splat(-(T)__builtin_inf());
      for (int64_t j = 0; j < k(); ++j) {
        const vec<T> e = load(m.scores + j * m.stride + i) * factor + m.bias[j];
        store(powers + j * width<T>, e);
        most = e > most ? e : most;
      }
      vec<T> sum = {};
      for (int64_t j = 0; j < k(); ++j) {
        const vec<T> power = exp2_of_any(load(powers + j * width<T>) - most);
        store(powers + j * width<T>, power);
        sum += power;
      }
      const vec<T> weight = load(m.s.x.weights + i), scale = weight / sum;
      const vec<T> root = What == Pass::roots ? sqrt(weight) / sum : weight;
      for (int64_t j = 0; j < k(); ++j) {
        const vec<T> power = load(powers + j * width<T>), part = power * scale;
        store(totals + j * width<T>, load(totals + j * width<T>) + part);
        if constexpr (What == Pass::plan) store(m.plan + j * m.stride + i, part);
        if constexpr (What == Pass::roots) store(m.plan + j * m.stride + i, power * root);
      }
      if constexpr (What == Pass::plan) {
        const auto [log_sum, whole] = log2_parts<T>(sum);
        const vec<T> log = most + (log_sum + whole) + (sum - sum);  // NaN stays NaN
        store(m.row_logs + i, log);
        logs += weight * log;
      }
    }
    for (int64_t j = 0; j < k(); ++j) sums[j] = (double)sum_lanes<T>(load(totals + j * width<T>));
    sums[k()] = (double)sum_lanes<T>(logs);
  }

  bool lost(int64_t j) const { return m.finite && weights()[j] > 0 && !(m.mass[j] > kLeastMass<T>); }

  // log Q_j from the logarithms that pass<Pass::plan> leaves; its row of the plan, in units of the largest
  // entry, and the sum of that.
  __attribute__((noinline)) double far_point(int64_t j) const {
    T* row = m.plan + j * m.stride;
    const double bias = point_bias(j);
    const auto exponent = [&](int64_t i) {
      const double weight = (double)m.s.x.weights[i], score = (double)m.scores[j * m.stride + i];
      return weight > 0 ? __builtin_log2(weight) + score * rate() + bias - (double)m.row_logs[i]
                        : -__builtin_inf();
    };
    double most = -__builtin_inf(), sum = 0;
    for (int64_t i = 0; i < n(); ++i) most = exponent(i) > most ? exponent(i) : most;
    for (int64_t i = 0; i < n(); ++i) {
      const double part = __builtin_exp2(exponent(i) - most);
      row[i] = (T)part;
      sum += part;
    }
    m.mass[j] = sum;
    return (most + __builtin_log2(sum)) / kLog2e;
  }

  // ---- what the caller asks for

  // Rows of the plan weigh x: its sums into y.grad. `mass` holds the sums of these weights.
  void add_rows() const {
    const Cloud<T>&x = m.s.x, &y = m.s.y;
    std::memset(y.grad, 0, k() * y.stride * sizeof(T));
    if (small()) {
      for (int64_t j = 0; j < k(); ++j)
        for (int64_t d = 0; d < dim(); ++d)
          y.grad[j * y.stride + d] = (T)sum_over<T>(
              n(), [&](int64_t i) { return m.plan[j * m.stride + i] * x.points[i * x.stride + d]; });
      return;
    }
    const int64_t vectors = round_up(dim(), width<T>) / width<T>;
    const int workers = threads_for(n() * k() * dim());
    const int64_t tasks = workers > 1 && workers < vectors ? workers : 1;
    for_tasks(tasks, workers, [&](int64_t task, int) {
      const int64_t d = task * vectors / tasks * width<T>, end = (task + 1) * vectors / tasks * width<T>;
      for (int64_t i = (n() - 1) / kSumRows * kSumRows; i >= 0; i -= kSumRows) {
        const int64_t rows = n() - i < kSumRows ? n() - i : kSumRows;
        over_blocks(k(), kSumPoints, [&](int64_t j, int64_t count) {
          weighted_rows<T>(count, rows, end - d, m.plan + j * m.stride + i, m.stride,
                           x.points + i * x.stride + d, x.stride, y.grad + j * y.stride + d, y.stride);
        });
      }
    });
  }

  // The plan of these potentials, with the masses of points without a share of it from logarithms. Returns
  // the value without those: sum_i a_i f_i for the f that g asks for.
  double finish() const {
    const double logs = pass<Pass::plan>();
    for (int64_t j = 0; j < k(); ++j) m.log_masses[j] = lost(j) ? far_point(j) : __builtin_log(m.mass[j]);
    double norms = 0;
    for (int64_t i = 0; !small() && i < n(); ++i)
      norms += 0.5 * (double)m.s.x.weights[i] * (double)m.s.x.norms[i];
    return unit() * norms - eps / kLog2e * logs;
  }

  // Potentials for which all marginals are kept: iterations until a share of at most `tolerance` is missed,
  // or so many; from the ones before, after annealing from first_eps where that is more than eps.
  void balance(double first_eps, double tolerance, int64_t most) {
    const double last = eps;
    for (double at = first_eps; at > last; at /= 4) {
      eps = at;
      pass<Pass::masses>();
      step(missed());
    }
    eps = last;
    const bool few = k() <= kNewtonPoints;
    double before = 0, part = 0;  // of Newton's step, where that was the last one
    for (int64_t made = 0; made < most; ++made) {
      few ? pass<Pass::roots>() : pass<Pass::masses>();
      double share = missed();
      bool newton = few && share < kNewtonFrom && share > tolerance && made + 1 < most;
      if (part > 0 && !(share < before)) {
        part = part > kLeastPart ? part / 4 : 0;
        for (int64_t j = 0; j < k(); ++j) m.g[j] = m.kept[j] + part * eps * m.move[j];
        if (part > 0) continue;
        pass<Pass::masses>();
        share = missed();
        newton = false;
      }
      before = share;
      part = newton ? step_by_derivative() : 0;
      if (part == 0) step(share);
      if (!(share > tolerance)) break;
    }
  }

  // By what share Q misses b.
  double missed() const {
    double sum = 0, all = 0;
    for (int64_t j = 0; j < k(); ++j) {
      const double weight = (double)weights()[j];
      all += weight;
      sum += lost(j) ? weight : __builtin_fabs(m.mass[j] - weight);
    }
    return all == 0 ? 0 : sum / all;
  }

  // g_j += factor eps log(b_j / Q_j). Where little is missed the factor is more than 1, which takes fewer
  // iterations: near the solution they converge with any that is less than 2.
  void step(double share) const {
    bool any_lost = false;
    for (int64_t j = 0; j < k(); ++j) any_lost |= lost(j);
    if (any_lost) pass<Pass::plan>();
    const double factor = eps * (share < kRelaxedFrom ? kRelaxation : 1.0);
    for (int64_t j = 0; j < k(); ++j)
      if (const double weight = (double)weights()[j]; weight != 0)
        m.g[j] += factor * (__builtin_log(weight) - (lost(j) ? far_point(j) : __builtin_log(m.mass[j])));
  }

  // Newton's, or the part of it that is returned, after pass<Pass::roots>. 0: there is none.
  double step_by_derivative() const {
    for (int64_t j = 0; j < k(); ++j) {
      if (lost(j)) return 0;
      m.move[j] = (double)weights()[j] - m.mass[j];
    }
    for (int64_t i = 0; i < k(); i += kDotRows) {
      const int64_t rows = k() - i < kDotRows ? k() - i : kDotRows;
      over_blocks(k(), kDotPoints, [&](int64_t j, int64_t count) {
        dot_rows<T>(rows, count, m.plan + i * m.stride, m.stride, m.plan + j * m.stride, m.stride,
                    round_up(n(), width<T>), m.products + j * k() + i, k());
      });
    }
    for (int64_t j = 0; j < k() * k(); ++j) m.system[j] = (double)m.products[j];
    if (!newton_step(k(), m.mass, __builtin_ldexp(1.0, 6 - FloatFormat<T>::mantissa), m.system, m.move))
      return 0;
    double longest = kReach;
    for (int64_t j = 0; j < k(); ++j) longest = __builtin_fmax(longest, __builtin_fabs(m.move[j]));
    std::memcpy(m.kept, m.g, k() * sizeof(double));
    for (int64_t j = 0; j < k(); ++j) m.g[j] += kReach / longest * eps * m.move[j];
    return kReach / longest;
  }
};

}  // namespace DECOCT_ISA
}  // namespace decoct
