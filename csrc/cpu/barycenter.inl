// Free-support barycentres: of every group of measures with rows x_i and masses a_i, points y_j and masses
// b_j at which
//   sum over measures of share * OT(measure, (y, b)),   OT as in sinkhorn.inl with p = 2 and eps = blur^2,
// is least, in turns: plans for the points, then the points for the plans,
//   y_j = sum share P_ij x_i / sum share P_ij.
// Learned masses, of one measure, leave the plan's second marginal free: g = 0 and b_j = Q_j, which takes one
// pass and is a step of expectation and maximisation for a mixture of Gaussians of width blur.
//
// Shapes: (N, D) rows of all measures, (K, D) points of all groups; one group's points are few.
// Operations and bytes of a turn: few_points.inl. The rows are packed once. One group after another runs
// through all its turns, so that its rows stay in a cache between them.
#pragma once
#include "few_points.inl"

namespace decoct {
namespace DECOCT_ISA {

template <class T>
struct BarycenterGroup {
  FewPoints<T>* measures;
  double *sums, *mass;  // (k, D), (k): the next points' numerators and denominators
};

template <class T>
static int64_t barycenter_layout(BarycenterGroup<T>& group, Arena& arena, const BarycenterArguments& a,
                                 int64_t g) {
  const int64_t k = a.point_offsets[g + 1] - a.point_offsets[g], dim = a.x.columns;
  const int64_t first = a.measure_offsets[g], count = a.measure_offsets[g + 1] - first;
  group.measures = arena.take<FewPoints<T>>(count);
  group.sums = arena.take<double>(k * dim);
  group.mass = arena.take<double>(k);
  for (int64_t m = 0; m < count; ++m) {
    FewPoints<T> measure{};
    measure.layout(arena, a.x_offsets[first + m + 1] - a.x_offsets[first + m], k, dim);
    if (arena.base) group.measures[m] = measure;
  }
  return arena.used;
}

template <class T>
struct BarycenterRun {
  const BarycenterArguments& a;
  char* memory;
  int64_t group_bytes, worker_bytes;
  int teams;

  // One group from its first points to its results.
  struct Turns {
    const BarycenterRun& run;
    BarycenterGroup<T> group;
    int64_t first_point, k, dim, count;
    char* lanes;
    int threads;

    T* point(int64_t j) const { return (T*)run.a.points.data + (first_point + j) * run.a.points.stride; }
    T* masses() const { return (T*)run.a.masses.data + first_point; }

    void attach_measure(FewPoints<T>& m, int64_t number) const {
      Kernel kernel{};
      kernel.profile = Profile::gaussian;
      Segment<T>& s = m.s;
      attach(s.x, run.a.x, run.a.a, Matrix{}, run.a.x_offsets[number]);
      attach(s.y, run.a.points, run.a.masses, Matrix{}, first_point);
      anchor_near_mean(s, kernel, m.column_sums);
      m.finite = pack(s);
      if (!m.finite) {
        // Squares overflow where the few rows that were looked at missed one that is very far out.
        anchor_at_mean(s, kernel, m.column_sums);
        m.finite = pack(s);
      }
      for (int64_t j = 0; j < k; ++j) {
        m.g[j] = 0;
        for (int64_t i = s.n; i < m.stride; ++i) m.scores[j * m.stride + i] = 0;
      }
    }

    // The rows, not the points. Returns whether all squared norms are finite.
    bool pack(const Segment<T>& s) const {
      int infinite = 0;
      for_tasks(FewPoints<T>::tasks_of(s.n), threads, [&](int64_t task, int) {
        const int64_t begin = task * kPassRows, end = begin + kPassRows < s.n ? begin + kPassRows : s.n;
        if (!(pack_chunk(s.x, begin, end, s.centre, s.spread) < __builtin_inf()))
          __atomic_store_n(&infinite, 1, __ATOMIC_RELAXED);
      });
      return !infinite;
    }

    // Where annealing begins: no cost is much larger.
    static double largest_cost(const Segment<T>& s) {
      double radius = 0;
      for (const Cloud<T>* cloud : {&s.x, &s.y}) {
        double most = 0;
        for (int64_t i = 0; i < cloud->rows; ++i)
          most = (double)cloud->norms[i] > most ? (double)cloud->norms[i] : most;
        radius += __builtin_sqrt(most);
      }
      return s.spread * s.spread * radius * radius;
    }

    // Plans at eps, and what they ask of the points where these are to move. Returns the weighted value.
    double plans(double eps, bool first, bool moving) const {
      std::memset(group.sums, 0, k * dim * sizeof(double));
      std::memset(group.mass, 0, k * sizeof(double));
      double total = 0;
      for (int64_t number = 0; number < count; ++number) {
        FewPoints<T>& m = group.measures[number];
        if (m.share == 0) continue;
        const Segment<T>& s = m.s;
        const bool finite = pack_chunk(s.y, 0, k, s.centre, s.spread) < __builtin_inf();
        m.finite = m.finite && finite;
        FewPointsPlan<T> plan{m, lanes, threads, eps};
        plan.score();
        if (!run.a.learned)
          plan.balance(first ? largest_cost(s) : 0, run.a.marginal_tolerance, run.a.inner_iterations);
        total += m.share * plan.finish();
        if (moving) plan.add_rows();
        for (int64_t j = 0; j < k; ++j) {
          const double weight = (double)s.y.weights[j];
          if (!run.a.learned && weight != 0) total += m.share * weight * m.g[j];
          if (!moving) continue;
          const double mass = m.share * (run.a.learned ? __builtin_exp(m.log_masses[j]) : weight);
          if (mass == 0 || m.mass[j] == 0) continue;
          const T* sum = s.y.grad + j * s.y.stride;
          const double unit = s.spread / m.mass[j];
          group.mass[j] += mass;
          for (int64_t d = 0; d < dim; ++d)
            group.sums[j * dim + d] += mass * ((double)sum[d] * unit + (double)s.centre[d]);
        }
      }
      return total;
    }

    // Returns by how much the points moved, the root of the mean square weighted by the masses.
    double move() const {
      double moved = 0, all = 0;
      for (int64_t j = 0; j < k; ++j) {
        const double mass = (double)masses()[j];
        all += mass;
        if (group.mass[j] == 0) continue;
        T* p = point(j);
        const double* sum = group.sums + j * dim;
        double square = 0;
        for (int64_t d = 0; d < dim; ++d) {
          const double old = (double)p[d];
          p[d] = (T)(old + run.a.step * (sum[d] / group.mass[j] - old));
          const double way = (double)p[d] - old;
          square += way * way;
        }
        moved += mass * square;
      }
      return all == 0 ? 0 : __builtin_sqrt(moved / all);
    }

    // Masses as the plan of the only measure has them.
    void weigh() const {
      for (int64_t m = 0; m < count; ++m)
        if (group.measures[m].share != 0) weigh(group.measures[m].log_masses);
    }
    void weigh(const double* logs) const {
      double total = 0;
      for (int64_t j = 0; j < k; ++j) total += __builtin_exp(logs[j]);
      for (int64_t j = 0; j < k; ++j) masses()[j] = (T)(__builtin_exp(logs[j]) / total);
    }

    void solve(int64_t g) const {
      const BarycenterArguments& a = run.a;
      const double last = a.blur * a.blur, factor = a.scaling * a.scaling;
      double eps = a.first_blur * a.first_blur, moved = 0;
      int64_t made = 0;
      bool converged = false;
      while (made < a.iterations && !converged) {
        eps = eps > last ? eps : last;
        plans(eps, made == 0, true);
        moved = move();
        if (a.learned) weigh();
        ++made;
        converged = eps == last && moved <= a.tolerance;
        eps *= factor;
        if (moved != moved) break;
      }
      a.cost[g] = plans(last, made == 0, false);
      a.movement[g] = moved;
      a.made[g] = made;
    }
  };

  void solve(int64_t g, int worker, int threads) const {
    Arena arena{memory + worker * group_bytes};
    Turns turns{*this,
                {},
                a.point_offsets[g],
                a.point_offsets[g + 1] - a.point_offsets[g],
                a.x.columns,
                a.measure_offsets[g + 1] - a.measure_offsets[g],
                memory + teams * group_bytes + worker * worker_bytes,
                threads};
    a.cost[g] = a.movement[g] = 0;
    a.made[g] = 0;
    const int64_t first = a.measure_offsets[g];
    double all = 0;
    for (int64_t m = 0; m < turns.count; ++m)
      if (a.x_offsets[first + m + 1] > a.x_offsets[first + m]) all += a.shares[first + m];
    if (turns.k == 0 || all == 0) return;
    barycenter_layout(turns.group, arena, a, g);
    for (int64_t m = 0; m < turns.count; ++m) {
      FewPoints<T>& measure = turns.group.measures[m];
      measure.share = measure.s.n > 0 ? a.shares[first + m] / all : 0;
      if (measure.share != 0) turns.attach_measure(measure, first + m);
    }
    turns.solve(g);
  }
};

// One group: by all threads; several: each by one thread.
inline int barycenter_teams(const BarycenterArguments& a, int threads) {
  return a.groups == 1 ? 1 : threads;
}

template <class T>
static int64_t barycenter_group_bytes(const BarycenterArguments& a) {
  int64_t most = 0;
  for (int64_t g = 0; g < a.groups; ++g) {
    Arena arena{nullptr};
    BarycenterGroup<T> counted{};
    const int64_t bytes = barycenter_layout(counted, arena, a, g);
    most = bytes > most ? bytes : most;
  }
  return most;
}

template <class T>
static int64_t barycenter_worker_bytes(const BarycenterArguments& a) {
  int64_t most = 0;
  for (int64_t g = 0; g < a.groups; ++g) {
    const int64_t k = a.point_offsets[g + 1] - a.point_offsets[g];
    most = k > most ? k : most;
  }
  return lanes_bytes<T>(most);
}

template <class T>
static int64_t barycenter_bytes(const BarycenterArguments& a, int threads) {
  return barycenter_teams(a, threads) * barycenter_group_bytes<T>(a) +
         threads * barycenter_worker_bytes<T>(a);
}

template <class T>
static void run_barycenter(const BarycenterArguments& a, const Execution& e) {
  const int teams = barycenter_teams(a, e.threads);
  const BarycenterRun<T> run{a, (char*)e.workspace, barycenter_group_bytes<T>(a),
                             barycenter_worker_bytes<T>(a), teams};
  if (teams == 1)
    for (int64_t g = 0; g < a.groups; ++g) run.solve(g, 0, e.threads);
  else
    for_tasks(a.groups, e.threads, [&](int64_t g, int worker) { run.solve(g, worker, 1); });
}

}  // namespace DECOCT_ISA
}  // namespace decoct
