// Entropic optimal transport by Sinkhorn's iteration, for every segment:
//   OT = min_P <P, C> + eps KL(P | a b^T) + rho KL(P 1 | a) + rho' KL(P^T 1 | b),   C = |x - y|^2 / 2 or |x -
//   y|
//
// Operations: 2 D a pair and pass for the scores unless they are kept, some 14 and one exponential for the
// sums (transport.inl); a symmetric term does half its pairs. The derivative by the points takes 2 D more,
// once. Bytes: O(N + M) beside the rows and what is kept.
//
// Iteration, as GeomLoss's: both potentials start at eps = diameter^p, eps falls by scaling^p to blur^p, half
// of the old potentials is kept, and the last step is taken whole. Partial transport of a mass m has f, g <=
// 0 and a multiplier h of that mass, P_ij = a_i b_j exp((f_i + g_j + h - C_ij) / eps).
#pragma once
#include "partial.inl"
#include "sums.inl"

namespace decoct {
namespace DECOCT_ISA {

// A segment's rows and what the steps of one term at a time make of their potentials.
template <class T>
struct TransportSegment {
  Segment<T> s;
  double *potential[2], *next[2], *bands[2], *weight[2], *log_weight[2];  // of x, of y
  T* bias[2];
  T *least, *most;  // corners of the box around the rows
  double* sums;     // of the columns
  T* kept;
};

// Scores that are few enough to stay in a cache are kept whatever the budget, and so are those of long rows,
// which take no more than twice what the rows and their panels do.
constexpr int64_t kCachedBytes = 4 << 20;
template <class T>
static bool keeps_scores(const Sizes& sizes, int64_t n, int64_t m, int64_t bytes) {
  const int64_t rows = (n + m) * padded_stride<T>(sizes.dim) * (int64_t)sizeof(T);
  return sizes.dim >= kSmallDim && (bytes <= kCachedBytes || bytes <= 4 * rows || bytes <= sizes.cost_budget);
}

// The side that wants a derivative has the rows: its scores serve once more.
inline bool rows_of_x(int need) {
  return (need & kNeedX) || !(need & kNeedY);
}

// Rows and row stride of kept scores: of all terms, whichever side the rows are.
struct KeptShape {
  int64_t rows, stride;
};
template <class T>
KeptShape kept_shape(int64_t n, int64_t m, int need, int terms) {
  const int64_t most = n > m ? n : m;
  const bool crossed = terms == kTermXY, on_x = rows_of_x(need);
  const int64_t rows = crossed ? (on_x ? n : m) : most, columns = crossed ? (on_x ? m : n) : most;
  return {rows, padded_stride<T>(columns < kSmallDim ? kSmallDim : columns)};
}

template <class T>
static void transport_layout(TransportSegment<T>& p, Arena& arena, const Sizes& sizes, int64_t c) {
  SegmentRule rule{};
  rule.n = sizes.x_offsets[c + 1] - sizes.x_offsets[c];
  rule.m = sizes.y_offsets[c + 1] - sizes.y_offsets[c];
  rule.splits = 1;
  rule.rows_are_x = rule.x_is_columns = rule.y_is_columns = true;
  segment_layout(p.s, arena, sizes, rule);
  const KeptShape shape = kept_shape<T>(rule.n, rule.m, sizes.need, sizes.terms);
  const int64_t kept = shape.rows * shape.stride * (int64_t)sizeof(T);
  // Neither grows with the rows alone: bands become higher.
  const int64_t of_x = bands_of(rule.n), of_y = bands_of(rule.m), bands = of_x > of_y ? of_x : of_y;
  for (int side = 0; side < 2; ++side) {
    const Cloud<T>& cloud = side ? p.s.y : p.s.x;
    p.potential[side] = arena.take<double>(cloud.rows);
    p.next[side] = arena.take<double>(cloud.rows);
    p.weight[side] = arena.take<double>(cloud.rows);
    p.log_weight[side] = arena.take<double>(cloud.rows);
    p.bands[side] = arena.take<double>(bands * cloud.rows);
    p.bias[side] = arena.take<T>(sizes.columns * round_up(cloud.rows, kTileColumns<T>));
  }
  p.least = arena.take<T>(sizes.dim);
  p.most = arena.take<T>(sizes.dim);
  p.sums = arena.take<double>(sizes.dim);
  p.kept = keeps_scores<T>(sizes, rule.n, rule.m, kept) ? arena.take<T>(kept / sizeof(T)) : nullptr;
}

// Of one side: 0 for x, 1 for y.
template <class T>
static void set_weights(const TransportSegment<T>& p, int side) {
  const Cloud<T>& cloud = side ? p.s.y : p.s.x;
  for (int64_t i = 0; i < round_up(cloud.rows, width<double>); ++i) {
    const double weight = i < cloud.rows ? (double)cloud.weights[i] : 0.0;
    p.weight[side][i] = weight;
    p.log_weight[side][i] = weight > 0    ? __builtin_log2(weight)
                            : weight == 0 ? (double)kNothing<T>
                                          : __builtin_nan("");
  }
}

// |most - least| over the coordinates of all rows: no two are further apart.
template <class T>
static double box_diameter(const TransportSegment<T>& p) {
  const Segment<T>& s = p.s;
  T *least = p.least, *most = p.most;
  for (int64_t d = 0; d < s.x.dim; ++d) least[d] = most[d] = s.x.points[d];
  for (const Cloud<T>* cloud : {&s.x, &s.y})
    for (int64_t i = 0; i < cloud->rows; ++i) {
      const T* point = cloud->points + i * cloud->stride;
      for (int64_t d = 0; d < cloud->dim; ++d) {
        least[d] = point[d] < least[d] ? point[d] : least[d];
        most[d] = point[d] > most[d] ? point[d] : most[d];
      }
    }
  const double square = sum_over<double>(s.x.dim, [=](int64_t d) {
    const double side = (double)most[d] - (double)least[d];
    return side * side;
  });
  return s.spread * __builtin_sqrt(square);
}

// One term of a segment, from its potentials to its share of the results.
template <class T>
struct TransportTerm {
  const SinkhornArguments& a;
  TransportSegment<T>& p;
  int64_t segment;
  int kind;
  bool rows_are_x;
  Transport<T> t;

  double to_power(double length) const { return t.squared() ? length * length : length; }
  const Matrix& potentials(bool x) const {
    return kind == kTermXY ? (x ? a.f : a.g) : (x ? a.f_self : a.g_self);
  }
  int64_t first(bool x) const { return (x ? a.clouds.x_offsets : a.clouds.y_offsets)[segment]; }
  // Calls use(side of t, whether it is x) for the sides of this term.
  template <class Use>
  void for_sides(Use use) {
    use(t.rows, rows_are_x);
    if (!t.symmetric) use(t.cols, !rows_are_x);
  }
  void start() {
    for_sides([&](const TransportSide<T>& side, bool x) {
      const T* from = (const T*)potentials(x).data + first(x);
      for (int64_t i = 0; i < side.cloud->rows; ++i) side.potential[i] = a.warm ? (double)from[i] : 0.0;
      if (!a.warm || !x || a.mass == 0) return;
      // They come with the multiplier, without which none is above 0 and the largest is 0.
      double most = -__builtin_inf();
      for (int64_t i = 0; i < side.cloud->rows; ++i) most = larger(side.potential[i], most);
      for (int64_t i = 0; i < side.cloud->rows; ++i) side.potential[i] -= most;
      t.shift = most;
    });
  }

  bool wanted(bool x) const { return a.need & (x ? kNeedX : kNeedY); }

  // Returns by what share a marginal is missed, or the mass of partial transport.
  double step(bool whole) {
    double missed = t.step(t.rows, t.cols, whole);
    if (!t.symmetric) missed = larger(missed, t.step(t.cols, t.rows, whole));
    return a.mass > 0 ? PartialStep<T>::run(t, whole) : missed;
  }
  void swap() {
    t.shift = t.next_shift;
    std::swap(t.rows.potential, t.rows.next);
    if (t.symmetric)
      t.cols.potential = t.rows.potential;
    else
      std::swap(t.cols.potential, t.cols.next);
  }

  void solve(double first_eps) {
    const double last = to_power(a.blur), factor = to_power(a.scaling);
    t.keep_scores(wanted(rows_are_x) && !t.squared());
    start();
    int64_t iterations = 0;
    double missed = 0;
    const auto iterate = [&](double eps, bool whole) {
      t.set_eps(eps);
      t.sum();
      missed = step(whole);
      swap();
      ++iterations;
    };
    if (!a.warm) {
      iterate(first_eps, true);
      iterate(first_eps, false);
      for (double eps = first_eps; eps > last && iterations + 2 < a.max_iterations; eps *= factor)
        iterate(eps, false);
    }
    iterate(last, false);
    while (a.tolerance > 0 && missed > a.tolerance && iterations + 1 < a.max_iterations) iterate(last, false);
    t.set_eps(last);
    wanted(rows_are_x) ? t.differentiate(!t.symmetric) : t.sum();
    missed = step(true);
    ++iterations;
    finish();
    a.error[segment] = larger(missed, a.error[segment]);
    a.iterations[segment] = iterations > a.iterations[segment] ? iterations : a.iterations[segment];
  }

  // After the last step: `potential` is the argument of that step, `next` its result.
  void finish() {
    const double sign = kind == kTermXY ? 1 : -1;
    double values[2] = {}, mass = 0;  // of x, of y
    for_sides([&](const TransportSide<T>& side, bool x) {
      for (int64_t i = 0; i < side.cloud->rows; ++i) {
        const double f = side.next[i], weight = (double)side.cloud->weights[i];
        if (weight == 0) continue;
        mass += weight;
        values[!x] += weight * (side.reach == __builtin_inf()
                                    ? f
                                    : -(side.reach + t.eps / 2) * __builtin_expm1(-f / side.reach));
      }
    });
    a.value[segment] += sign * (values[0] + values[1] + (a.mass > 0 ? a.mass * t.next_shift : 0));
    // Of those that solve a balanced problem alike, the potentials with a @ f == b @ g.
    const bool shifts =
        !t.symmetric && a.reach_x == __builtin_inf() && a.reach_y == __builtin_inf() && a.mass == 0;
    const double centre = shifts && mass != 0 ? (values[0] - values[1]) / mass : 0;
    for_sides([&](const TransportSide<T>& side, bool x) {
      T* out = (T*)potentials(x).data + first(x);
      for (int64_t i = 0; i < side.cloud->rows; ++i)
        out[i] = (T)(side.next[i] + (x ? t.next_shift - centre : centre));
    });
    if (wanted(rows_are_x)) add_derivative(t, rows_are_x, sign);
    if (t.symmetric || !wanted(!rows_are_x)) return;
    Transport<T> turned = t;
    std::swap(turned.rows, turned.cols);
    turned.kept = nullptr;
    turned.differentiate(false);
    add_derivative(turned, !rows_are_x, sign);
  }

  // By the rows of t, whose plan at their next potentials is a multiple of the one that was summed up.
  void add_derivative(const Transport<T>& t, bool x, double sign) const {
    const TransportSide<T>& side = t.rows;
    const Cloud<T>& cloud = *side.cloud;
    const Matrix& grad = x ? a.grad_x : a.grad_y;
    const double unit = sign * (t.squared() ? p.s.spread : 1.0);
    const bool balanced = side.reach == __builtin_inf() && a.mass == 0;
    t.for_bands([&](int64_t, int64_t i0, int64_t i1, int) {
      for (int64_t i = i0; i < i1; ++i) {
        double moved = side.next[i] + t.next_shift - (side.potential[i] + t.shift);
        if (t.finite && !t.in_range(cloud.ksum[i]))
          moved = side.next[i] + t.next_shift + t.eps * t.exact_derivative(i);
        // Where the row's mass is known, rounding in the exponents cancels.
        const T scale = (T)(balanced ? unit / cloud.ksum[i] : unit * __builtin_exp(moved / t.eps));
        const T w = (T)cloud.wsum[i];
        T* to = (T*)grad.data + (first(x) + i) * grad.stride;
        const T *point = cloud.points + i * cloud.stride, *sum = cloud.grad + i * cloud.stride;
        if (kind == kTermXY)  // the first of the terms
          for (int64_t d = 0; d < cloud.dim; ++d) to[d] = scale * (w * point[d] - sum[d]);
        else
          for (int64_t d = 0; d < cloud.dim; ++d) to[d] += scale * (w * point[d] - sum[d]);
      }
    });
  }
};

template <class T>
struct SinkhornRun {
  const SinkhornArguments& a;
  Sizes sizes;
  Execution e;
  char* memory;
  int64_t tile_bytes, segment_bytes;
  int teams;

  void solve(int64_t c, int worker, int threads) const {
    Arena arena{memory + worker * segment_bytes};
    TransportSegment<T> p{};
    transport_layout(p, arena, sizes, c);
    Segment<T>& s = p.s;
    if (s.n == 0 || s.m == 0) return;
    attach(s, a.clouds, c);
    anchor_near_mean(s, a.clouds.kernel, p.sums);
    bool finite = pack(s, threads);
    if (!finite) {
      // Squares overflow where the few rows that were looked at missed one that is very far out.
      anchor_at_mean(s, a.clouds.kernel, p.sums);
      finite = pack(s, threads);
    }
    for (const int side : {0, 1}) set_weights(p, side);
    const double eps = first_eps(p);
    for (const int kind : {kTermXY, kTermXX, kTermYY})
      if (sizes.terms & kind) term(p, c, kind, finite, worker, threads).solve(eps);
  }

  // Returns whether all squared norms are finite.
  static bool pack(const Segment<T>& s, int threads) {
    const int64_t of_x = (s.n + kChunkRows - 1) / kChunkRows, of_y = (s.m + kChunkRows - 1) / kChunkRows;
    int infinite = 0;
    for_tasks(of_x + of_y, threads, [&](int64_t task, int) {
      const Cloud<T>& cloud = task < of_x ? s.x : s.y;
      const int64_t begin = (task < of_x ? task : task - of_x) * kChunkRows;
      const int64_t end = begin + kChunkRows < cloud.rows ? begin + kChunkRows : cloud.rows;
      if (!(pack_chunk(cloud, begin, end, s.centre, s.spread) < __builtin_inf()))
        __atomic_store_n(&infinite, 1, __ATOMIC_RELAXED);
    });
    return !infinite;
  }

  // Where annealing begins: no cost is much larger.
  double first_eps(const TransportSegment<T>& p) const {
    const auto to_power = [this](double length) {
      return a.clouds.kernel.profile == Profile::gaussian ? length * length : length;
    };
    if (a.diameter > 0) return to_power(a.diameter);
    double most = 0;
    for (int64_t l = 0; l < a.label_cost.rows; ++l)
      for (int64_t k = 0; k < a.label_cost.columns; ++k)
        most = larger(__builtin_fabs(((const double*)a.label_cost.data)[l * a.label_cost.stride + k]), most);
    const double eps = to_power(box_diameter(p)) + most;
    return eps == 0 ? to_power(a.blur) : eps;  // where all rows are one
  }

  TransportTerm<T> term(TransportSegment<T>& p, int64_t c, int kind, bool finite, int worker,
                        int threads) const {
    const bool squared = a.clouds.kernel.profile == Profile::gaussian;
    const auto side = [&](bool x) {
      const double reach = x ? a.reach_x : a.reach_y;
      const Matrix& labels = x ? a.x_labels : a.y_labels;
      const int64_t first = (x ? a.clouds.x_offsets : a.clouds.y_offsets)[c];
      return TransportSide<T>{x ? &p.s.x : &p.s.y,
                              p.potential[!x],
                              p.next[!x],
                              p.bias[!x],
                              p.bands[!x],
                              p.weight[!x],
                              p.log_weight[!x],
                              labels.data ? (const int64_t*)labels.data + first : nullptr,
                              squared ? reach * reach : reach};
    };
    const bool symmetric = kind != kTermXY;
    const bool rows_are_x = symmetric ? kind == kTermXX : rows_of_x(a.need);
    Transport<T> t{a,
                   p.s,
                   side(rows_are_x),
                   side(symmetric ? rows_are_x : !rows_are_x),
                   symmetric,
                   finite,
                   p.kept,
                   kept_shape<T>(p.s.n, p.s.m, sizes.need, sizes.terms).stride,
                   memory + teams * segment_bytes + worker * tile_bytes,
                   tile_bytes,
                   threads};
    return {a, p, c, kind, rows_are_x, t};
  }
};

template <class T>
static int64_t tile_bytes() {
  Arena arena{nullptr};
  tile_layout<T>(arena);
  return arena.used;
}

// Few segments: each by all threads, one after another; many: each by one thread.
inline int transport_teams(const Sizes& sizes) {
  return sizes.segments < 4 * sizes.threads ? 1 : sizes.threads;
}

// Of the segment that takes the most; each team has as much.
template <class T>
static int64_t transport_bytes(const Sizes& sizes) {
  int64_t most = 0;
  for (int64_t c = 0; c < sizes.segments; ++c) {
    Arena arena{nullptr};
    TransportSegment<T> counted{};
    transport_layout(counted, arena, sizes, c);
    if (arena.used > most) most = arena.used;
  }
  return most;
}

template <class T>
static int64_t sinkhorn_bytes(const Sizes& sizes) {
  return transport_teams(sizes) * transport_bytes<T>(sizes) + sizes.threads * tile_bytes<T>();
}

template <class T>
static void run_sinkhorn(const SinkhornArguments& a, const Sizes& sizes, const Execution& e) {
  const int teams = transport_teams(sizes);
  const SinkhornRun<T> run{a,    sizes, e, (char*)e.workspace, tile_bytes<T>(), transport_bytes<T>(sizes),
                           teams};
  for (int64_t c = 0; c < sizes.segments; ++c) {
    a.value[c] = a.error[c] = 0;
    a.iterations[c] = 0;
    const bool empty = a.clouds.x_offsets[c] == a.clouds.x_offsets[c + 1] ||
                       a.clouds.y_offsets[c] == a.clouds.y_offsets[c + 1];
    if (!empty && (a.terms & kTermXY)) continue;
    clear_rows<T>(a.grad_x, a.clouds.x_offsets, c);
    clear_rows<T>(a.grad_y, a.clouds.y_offsets, c);
  }
  if (teams == 1)
    for (int64_t c = 0; c < sizes.segments; ++c) run.solve(c, 0, e.threads);
  else
    for_tasks(sizes.segments, e.threads, [&](int64_t c, int worker) { run.solve(c, worker, 1); });
}

}  // namespace DECOCT_ISA
}  // namespace decoct
