// Free-support barycentres: of every group of measures with rows x_i and masses a_i, points y_j and masses
// b_j at which
//   sum over measures of share * OT(measure, (y, b)),   OT as in sinkhorn.inl with p = 2 and eps = blur^2,
// is least, in turns: plans for the points, then the points for the plans,
//   y_j = sum share P_ij x_i / sum share P_ij.
// Learned masses, of one measure, leave the plan's second marginal free:
//   P_ij = a_i b_j exp(-C_ij / eps) / sum_k b_k exp(-C_ik / eps),   b_j = sum_i P_ij,
// which takes no iteration and is a step of expectation and maximisation for a mixture of Gaussians of width
// blur.
//
// Shapes: (N, D) rows of all measures, (K, D) points of all groups; one group's points are few.
// Operations: 4 N k D a turn for the scores and the products with the plan, and some 14 and one exponential a
// pair for each pass over the scores, which are kept. Bytes: the rows are packed once and read twice a turn.
// One group after another runs through all its turns, so that its rows stay in a cache between them.
#pragma once
#include "sinkhorn.inl"

namespace decoct {
namespace DECOCT_ISA {

// A measure of the group at work: its rows, packed once, beside a copy of the points.
template <class T>
struct BarycenterMeasure {
  TransportSegment<T> p;
  double* log_marginals;  // (k): of the plan, on the side of the points
  double share;
  bool finite;
};

template <class T>
struct BarycenterGroup {
  BarycenterMeasure<T>* measures;
  double *sums, *mass;  // (k, D), (k): the next points' numerators and denominators
};

template <class T>
static int64_t barycenter_layout(BarycenterGroup<T>& group, Arena& arena, const BarycenterArguments& a,
                                 int64_t g) {
  const int64_t k = a.point_offsets[g + 1] - a.point_offsets[g], dim = a.x.columns;
  const int64_t first = a.measure_offsets[g], count = a.measure_offsets[g + 1] - first;
  group.measures = arena.take<BarycenterMeasure<T>>(count);
  group.sums = arena.take<double>(k * dim);
  group.mass = arena.take<double>(k);
  for (int64_t m = 0; m < count; ++m) {
    BarycenterMeasure<T> counted{};
    BarycenterMeasure<T>& measure = arena.base ? group.measures[m] : counted;
    const int64_t x_offsets[] = {0, a.x_offsets[first + m + 1] - a.x_offsets[first + m]},
                  y_offsets[] = {0, k};
    Sizes sizes;
    sizes.op = Op::sinkhorn;
    sizes.rows = a.x.dtype;
    sizes.segments = 1;
    sizes.dim = dim;
    sizes.x_offsets = x_offsets;
    sizes.y_offsets = y_offsets;
    sizes.need = kNeedY;
    sizes.terms = kTermXY;
    measure = {};
    transport_layout(measure.p, arena, sizes, 0);
    measure.log_marginals = arena.take<double>(k);
  }
  return arena.used;
}

template <class T>
struct BarycenterRun {
  const BarycenterArguments& a;
  SinkhornArguments transport;  // what passes over a plan read of it
  char* memory;
  int64_t group_bytes, tile_bytes;
  int teams;

  // One group from its first points to its results.
  struct Turns {
    const BarycenterRun& run;
    BarycenterGroup<T> group;
    int64_t first_point, k, dim, count;
    char* tiles;
    int threads;

    T* point(int64_t j) const { return (T*)run.a.points.data + (first_point + j) * run.a.points.stride; }
    T* masses() const { return (T*)run.a.masses.data + first_point; }

    Transport<T> plan_of(BarycenterMeasure<T>& m) const {
      const auto side = [&](bool x) {
        return TransportSide<T>{x ? &m.p.s.x : &m.p.s.y, m.p.potential[!x], m.p.next[!x],       m.p.bias[!x],
                                m.p.bands[!x],           m.p.weight[!x],    m.p.log_weight[!x], nullptr,
                                __builtin_inf()};
      };
      return {
          run.transport, m.p.s,          side(false), side(true),
          false,         m.finite,       m.p.kept,    kept_shape<T>(m.p.s.n, m.p.s.m, kNeedY, kTermXY).stride,
          tiles,         run.tile_bytes, threads};
    }

    void attach_measure(BarycenterMeasure<T>& m, int64_t number) const {
      Segment<T>& s = m.p.s;
      attach(s.x, run.a.x, run.a.a, Matrix{}, run.a.x_offsets[number]);
      attach(s.y, run.a.points, run.a.masses, Matrix{}, first_point);
      anchor_near_mean(s, run.transport.clouds.kernel, m.p.sums);
      m.finite = SinkhornRun<T>::pack(s, threads);
      if (!m.finite) {
        anchor_at_mean(s, run.transport.clouds.kernel, m.p.sums);
        m.finite = SinkhornRun<T>::pack(s, threads);
      }
      set_weights(m.p, 0);
      for (int side = 0; side < 2; ++side)
        for (int64_t i = 0; i < (side ? k : s.n); ++i) m.p.potential[side][i] = 0;
    }

    // The points where they are now, and their weights.
    void place(BarycenterMeasure<T>& m) const {
      const Segment<T>& s = m.p.s;
      const bool finite = pack_chunk(s.y, 0, k, s.centre, s.spread) < __builtin_inf();
      m.finite = m.finite && finite;
      set_weights(m.p, 1);
    }

    static void swap(TransportSide<T>& side) { std::swap(side.potential, side.next); }

    // Where the plan has both marginals: potentials from those of the turn before, or by annealing; the sums
    // of the derivative by the points. Returns the value.
    double balance(Transport<T>& t, double eps, double first_eps) const {
      double missed = 0;
      const auto step = [&](bool whole) {
        missed = t.step(t.rows, t.cols, whole);
        missed = larger(missed, t.step(t.cols, t.rows, whole));
      };
      const auto iterate = [&](double at, bool whole) {
        t.set_eps(at);
        t.sum();
        step(whole);
        swap(t.rows);
        swap(t.cols);
      };
      t.keep_scores(false);
      if (first_eps > 0) {
        iterate(first_eps, true);
        for (double at = first_eps; at > eps; at /= 4) iterate(at, false);
      }
      int made = 0;
      do iterate(eps, false);
      while (missed > run.a.marginal_tolerance && ++made < run.a.inner_iterations);
      t.set_eps(eps);
      t.differentiate(true);
      step(true);
      return value(t.cols) + value(t.rows);
    }

    static double value(const TransportSide<T>& side) {
      double sum = 0;
      for (int64_t i = 0; i < side.cloud->rows; ++i)
        if (side.weight[i] != 0) sum += side.weight[i] * side.next[i];
      return sum;
    }

    // Where the second marginal is free: f from g = 0.
    double assign(Transport<T>& t, double eps, double* log_marginals) const {
      for (int64_t j = 0; j < k; ++j) t.rows.potential[j] = 0;
      t.keep_scores(false);
      t.set_eps(eps);
      t.sum();
      t.step(t.cols, t.rows, true);
      const double found = value(t.cols);
      swap(t.cols);
      t.differentiate(false);
      for (int64_t j = 0; j < k; ++j) {
        const double sum = t.rows.cloud->ksum[j];
        const bool lost = t.finite && !Transport<T>::in_range(sum);
        log_marginals[j] =
            __builtin_log(t.rows.weight[j]) + (lost ? t.exact_derivative(j) : __builtin_log(sum));
      }
      return found;
    }

    // Plans at eps; adds what they ask of the points. Returns the weighted value.
    double plans(double eps, bool first) const {
      std::memset(group.sums, 0, k * dim * sizeof(double));
      std::memset(group.mass, 0, k * sizeof(double));
      double total = 0;
      for (int64_t number = 0; number < count; ++number) {
        BarycenterMeasure<T>& m = group.measures[number];
        if (m.share == 0) continue;
        place(m);
        Transport<T> t = plan_of(m);
        if (run.a.learned) {
          total += m.share * assign(t, eps, m.log_marginals);
        } else {
          const double box = first ? box_diameter(m.p) : 0;
          total += m.share * balance(t, eps, box * box);
          for (int64_t j = 0; j < k; ++j) m.log_marginals[j] = __builtin_log(t.rows.weight[j]);
          for (int64_t j = 0; j < k; ++j)
            if (t.finite && !Transport<T>::in_range(t.rows.cloud->ksum[j])) t.exact_derivative(j);
          swap(t.rows);
          swap(t.cols);
        }
        m.p.potential[1] = t.rows.potential;
        m.p.next[1] = t.rows.next;
        m.p.potential[0] = t.cols.potential;
        m.p.next[0] = t.cols.next;
        const Cloud<T>& y = m.p.s.y;
        for (int64_t j = 0; j < k; ++j) {
          const double mass = m.share * __builtin_exp(m.log_marginals[j]);
          if (mass == 0 || y.wsum[j] == 0) continue;
          const T* sum = y.grad + j * y.stride;
          const double unit = m.p.s.spread / y.wsum[j];
          group.mass[j] += mass;
          for (int64_t d = 0; d < dim; ++d)
            group.sums[j * dim + d] += mass * ((double)sum[d] * unit + (double)m.p.s.centre[d]);
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
        if (group.measures[m].share != 0) weigh(group.measures[m].log_marginals);
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
        plans(eps, made == 0);
        moved = move();
        if (a.learned) weigh();
        ++made;
        converged = eps == last && moved <= a.tolerance;
        eps *= factor;
        if (moved != moved) break;
      }
      a.cost[g] = plans(last, made == 0);
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
                memory + teams * group_bytes + worker * tile_bytes,
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
      BarycenterMeasure<T>& measure = turns.group.measures[m];
      measure.share = measure.p.s.n > 0 ? a.shares[first + m] / all : 0;
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
static int64_t barycenter_bytes(const BarycenterArguments& a, int threads) {
  return barycenter_teams(a, threads) * barycenter_group_bytes<T>(a) + threads * tile_bytes<T>();
}

template <class T>
static void run_barycenter(const BarycenterArguments& a, const Execution& e) {
  SinkhornArguments transport{};
  transport.clouds.kernel.profile = Profile::gaussian;
  const int teams = barycenter_teams(a, e.threads);
  const BarycenterRun<T> run{
      a, transport, (char*)e.workspace, barycenter_group_bytes<T>(a), tile_bytes<T>(), teams};
  if (teams == 1)
    for (int64_t g = 0; g < a.groups; ++g) run.solve(g, 0, e.threads);
  else
    for_tasks(a.groups, e.threads, [&](int64_t g, int worker) { run.solve(g, worker, 1); });
}

}  // namespace DECOCT_ISA
}  // namespace decoct
