// Passes over the pairs of a transport problem: with S_ij = exp((f_i + g_j - C_ij) / eps), the sums
//   R_i = sum_j b_j S_ij,   Q_j = sum_i a_i S_ij
// give both half-steps, T(g)_i = f_i - eps log R_i and T(f)_j = g_j - eps log Q_j, from one product and one
// exponential a pair and without maxima. A sum that is out of range is made again from logarithms, row by
// row.
//
// Rows are cut into bands, each with sums of its own over the columns, which are added in order: the cut is a
// matter of the shape, so that results do not depend on threads. A symmetric term does the pairs on and above
// the diagonal. Scores of few rows, or within the caller's budget, are made once and kept.
#pragma once
#include "segment_ops.inl"
#include "stream.inl"
#include "transport_tile.inl"

namespace decoct {
namespace DECOCT_ISA {

// Rows of a term, with their potentials and what a pass makes of them.
template <class T>
struct TransportSide {
  Cloud<T>* cloud;
  double *potential, *next;  // before and after a step
  T* bias;                   // (labels, padded rows): potentials over eps less label costs, as powers of two
  double* bands;             // (bands of the other side, rows): their shares of the sums
  const double *weight, *log_weight;  // in powers of two; zero past the last row
  const int64_t* labels;
  double reach;  // to the power p; infinite: the marginal is kept

  int64_t padded() const { return round_up(cloud->rows, kTileColumns<T>); }
};

constexpr int64_t kMostBands = 32;

// Sums below it or above its inverse have lost terms.
template <class T>
constexpr double kLeastSum = sizeof(T) == 4 ? 1e-28 : 1e-280;

// A bias so low that a pair counts for nothing.
template <class T>
constexpr T kNothing = T(-1e30);

inline int64_t band_rows(int64_t rows) {
  constexpr int64_t unit = kTileHeight / 2;
  return round_up((rows + kMostBands - 1) / kMostBands, rows <= kMostBands * unit ? unit : 2 * unit);
}
inline int64_t bands_of(int64_t rows) {
  return rows ? (rows + band_rows(rows) - 1) / band_rows(rows) : 0;
}

// A term of a segment: rows against columns, which are the same ones where it is symmetric.
template <class T>
struct Transport {
  const SinkhornArguments& a;
  const Segment<T>& s;
  TransportSide<T> rows, cols;
  bool symmetric, finite;
  T* kept;  // scores of all pairs, or nullptr
  int64_t kept_stride;
  char* tiles;  // scratch of each thread
  int64_t tile_bytes;
  int threads;
  double eps = 0, shift = 0;  // shift: of partial transport, the multiplier of its mass
  ProfileConstants<T> constants{};

  bool squared() const { return a.clouds.kernel.profile == Profile::gaussian; }
  double unit() const { return squared() ? s.spread * s.spread / 2 : s.spread; }
  double label_cost(int64_t row, int64_t label) const {
    return ((const double*)a.label_cost.data)[row * a.label_cost.stride + label];
  }

  void set_eps(double value) {
    eps = value;
    constants = s.constants;
    constants.scales = 1;
    constants.rate[0] = (T)(kLog2e * unit() / eps);
    constants.slope[0] = squared() ? T(-1) : T(-2);  // k' = k, and k / d
  }

  Cost cost() const {
    if (rows.cloud->dim < kSmallDim) return squared() ? Cost::squared_small : Cost::distance_small;
    return squared() ? Cost::squared_score : Cost::distance_score;
  }

  // Biases of the exponents: potentials over eps less the costs of labels and, for sum(), the weights and
  // what the norms are to a squared distance.
  void set_biases(bool whole) const {
    const double rate = whole && cost() == Cost::squared_score ? (double)constants.rate[0] : 0.0;
    const auto set = [=](const TransportSide<T>& side, double more, const double* costs, T* out) {
      const double factor = kLog2e / eps;
      const double *potential = side.potential, *logs = side.log_weight;
      const T* norms = side.cloud->norms;
      for (int64_t i = 0; i < side.cloud->rows; ++i)
        out[i] = (T)((potential[i] + more) * factor - rate * (double)norms[i]);
      for (int64_t i = 0; whole && i < side.cloud->rows; ++i) out[i] += (T)logs[i];
      for (int64_t i = 0; costs && i < side.cloud->rows; ++i) out[i] -= (T)(costs[side.labels[i]] * factor);
      for (int64_t i = side.cloud->rows; i < side.padded(); ++i) out[i] = whole ? kNothing<T> : T(0);
    };
    set(rows, shift, nullptr, rows.cloud->bias);
    if (!rows.labels) return set(cols, 0, nullptr, cols.bias);
    for (int64_t l = 0; l < a.label_cost.rows; ++l)
      set(cols, 0, (const double*)a.label_cost.data + l * a.label_cost.stride, cols.bias + l * cols.padded());
  }

  TileScratch<T> scratch(int worker) const {
    Arena arena{tiles + worker * tile_bytes};
    return tile_layout<T>(arena);
  }

  template <class Task>
  void for_bands(Task task) const {
    struct Context {
      const Transport* transport;
      Task task;
    } context{this, task};
    cpu::parallel_for(bands_of(rows.cloud->rows), threads, &context, [](void* p, int64_t band, int worker) {
      const Context& c = *(const Context*)p;
      const int64_t count = c.transport->rows.cloud->rows, height = band_rows(count), i0 = band * height;
      c.task(band, i0, i0 + height < count ? i0 + height : count, worker);
    });
  }

  // `all`: of a symmetric term below the diagonal too.
  void keep_scores(bool all) const {
    if (!kept) return;
    const Cloud<T>&from = *rows.cloud, &to = *cols.cloud;
    for_bands([&](int64_t, int64_t i0, int64_t i1, int) {
      for (int64_t j0 = symmetric && !all ? i0 : 0; j0 < to.rows; j0 += kTileColumns<T>)
        for (int64_t i = i0; i < i1; i += kTileHeight)
          scores(from.points, from.stride, from.dim, to.panels, kept + i * kept_stride + j0, i,
                 i + kTileHeight < i1 ? i + kTileHeight : i1, j0,
                 j0 + kTileColumns<T> < to.rows ? j0 + kTileColumns<T> : to.rows, false, kept_stride);
    });
  }

  // Pairs of rows [i0, i1) and columns [j0, j1) into the sums of the rows and, if any, of the columns.
  void sum_block(int64_t i0, int64_t i1, int64_t j0, int64_t j1, double* column_sums,
                 const TileScratch<T>& own) const {
    const Cloud<T>&from = *rows.cloud, &to = *cols.cloud;
    const Cost kind = cost();
    const auto tile_sums = choose_transport<T>(kind, column_sums);
    TransportTile<T> t{&from,           &to,           from.bias,         cols.bias,
                       rows.labels,     cols.padded(), constants.rate[0], nullptr,
                       kTileColumns<T>, from.ksum,     own.column_k};
    const bool scored = from.dim >= kSmallDim;
    const int64_t step = kept ? kKeptColumns<T> : kTileColumns<T>;
    for (int64_t j = j0; j < j1; j += step) {
      const int64_t end = j + step < j1 ? j + step : j1;
      for (int64_t i = i0; i < i1; i += kTileHeight) {
        const int64_t last = i + kTileHeight < i1 ? i + kTileHeight : i1;
        if (scored && kept) {
          t.scores = kept + i * kept_stride + j;
          t.scores_stride = kept_stride;
        } else if (scored) {
          scores(from.points, from.stride, from.dim, to.panels, own.tile, i, last, j, end);
          t.scores = own.tile;
        }
        tile_sums(t, i, last, j, end);
        for (int64_t k = j; column_sums && k < end; ++k) column_sums[k] += (double)t.column_sums[k - j];
      }
    }
  }

  // a_i R_i of every row and b_j Q_j of every column.
  void sum() const {
    set_biases(true);
    const int64_t count = cols.cloud->rows;
    for_bands([&](int64_t band, int64_t i0, int64_t i1, int worker) {
      double* columns = cols.bands + band * count;
      std::memset(columns, 0, count * sizeof(double));
      std::memset(rows.cloud->ksum + i0, 0, (i1 - i0) * sizeof(double));
      const TileScratch<T> tile = scratch(worker);
      if (symmetric) sum_block(i0, i1, i0, i1, nullptr, tile);
      sum_block(i0, i1, symmetric ? i1 : 0, count, columns, tile);
    });
    double* sums = cols.cloud->ksum;
    const int64_t bands = bands_of(rows.cloud->rows);
    if (!symmetric) std::memset(sums, 0, count * sizeof(double));
    for (int64_t band = 0; band < bands; ++band)
      for (int64_t j = 0; j < count; ++j) sums[j] += cols.bands[band * count + j];
  }

  // Sums of b_j S_ij, of W_ij = a_i b_j S_ij (p = 2) or that over d_ij (p = 1), and of W_ij q_j, over all
  // columns for every row.
  void differentiate() const {
    set_biases(false);
    for_bands([&](int64_t, int64_t i0, int64_t i1, int worker) {
      const Cloud<T>& cloud = *rows.cloud;
      clear_accumulators(cloud, i0, i1);
      Block<T> b{};
      b.rows = &cloud;
      b.cols = cols.cloud;
      b.i0 = i0;
      b.i1 = i1;
      b.j1 = cols.cloud->rows;
      b.kernel_scale = 1;
      b.weight_scale = 1;
      b.constants = &constants;
      b.row_bias = cloud.bias;
      b.col_bias = cols.bias;
      b.row_labels = rows.labels;
      b.col_bias_stride = cols.padded();
      b.kept = kept;
      b.kept_stride = kept_stride;
      b.row_side = true;
      b.row_ksum = cloud.ksum;
      b.row_grad = cloud.grad;
      b.row_wsum = cloud.wsum;
      choose_plan_block<T>(a.clouds.kernel.profile, true, false)(b, scratch(worker));
      for (int64_t i = i0; i < i1; ++i)
        if (finite && !in_range(cloud.ksum[i])) exact_derivative(i);
    });
  }

  static bool in_range(double sum) { return sum > kLeastSum<T> && sum < 1 / kLeastSum<T>; }

  double exponent(const TransportSide<T>& side, const TransportSide<T>& other, int64_t i, int64_t j) const {
    const Cloud<T>&from = *side.cloud, &to = *other.cloud;
    const double r = squared_distance(from.points + i * from.stride, to.points + j * to.stride, from.dim);
    double cost = unit() * (squared() ? r : __builtin_sqrt(r));
    if (side.labels) cost += label_cost(side.labels[i], other.labels[j]);
    return (other.potential[j] - cost) / eps;
  }

  // log sum_j b_j exp((g_j - C_ij) / eps).
  double exact_sum(const TransportSide<T>& side, const TransportSide<T>& other, int64_t i) const {
    double most = -__builtin_inf(), sum = 0;
    for (int64_t j = 0; j < other.cloud->rows; ++j)
      if (const double b = (double)other.cloud->weights[j]; b > 0) {
        const double t = exponent(side, other, i, j);
        sum = t > most ? sum * __builtin_exp(most - t) + b : sum + b * __builtin_exp(t - most);
        most = t > most ? t : most;
      }
    return most + __builtin_log(sum);
  }

  // What differentiate() sums for row i.
  void exact_derivative(int64_t i) const {
    const Cloud<T>&from = *rows.cloud, &to = *cols.cloud;
    const T* p = from.points + i * from.stride;
    T* sums = from.grad + i * from.stride;
    for (int64_t d = 0; d < from.stride; ++d) sums[d] = 0;
    from.wsum[i] = from.ksum[i] = 0;
    for (int64_t j = 0; j < to.rows; ++j) {
      if (to.weights[j] == 0) continue;
      const T* q = to.points + j * to.stride;
      const double plan = (double)to.weights[j] *
                          __builtin_exp((rows.potential[i] + shift) / eps + exponent(rows, cols, i, j));
      double w = (double)from.weights[i] * plan;
      if (!squared()) {
        const double r = squared_distance(p, q, from.dim);
        w = r > 0 ? w / __builtin_sqrt(r) : 0;
      }
      from.ksum[i] += plan;
      from.wsum[i] += w;
      for (int64_t d = 0; d < from.dim; ++d) sums[d] += (T)(w * (double)q[d]);
    }
  }

  // The next potentials of one side, from the sums of a pass: T(g), damped where the marginal may be missed,
  // averaged with the old ones unless `whole`. Returns by what share of all mass the marginal is missed.
  double step(const TransportSide<T>& side, const TransportSide<T>& other, bool whole) const {
    constexpr double ln2 = 0.69314718055994530942;
    const double damping = 1 / (1 + eps / side.reach), old_share = whole ? 0.0 : 0.5;
    const bool balanced = side.reach == __builtin_inf() && a.mass == 0, partial = a.mass > 0;
    vdouble missed = {}, mass = {};
    for (int64_t i = 0; i < side.cloud->rows; i += width<double>) {
      const vdouble weight = load(side.weight + i), old = load(side.potential + i);
      vdouble sum = load(side.cloud->ksum + i) / weight;
      const auto [log_m, exponent] = log2_parts<double>(sum);
      vdouble full = old - (log_m + exponent) * (eps * ln2) + (sum - sum);
      if (__builtin_expect(finite && any_lane(~((sum > kLeastSum<T>)&(sum < 1 / kLeastSum<T>))), 0))
        step_exactly(side, other, i, whole, sum, full);
      const vdouble next = partial ? -at_least(-full, 0.0) : full * damping;
      const vdouble kept = balanced ? splat(1.0) : exp2_of_any((next - full) * (kLog2e / eps));
      const vdouble error = sum - kept;
      missed += weight * (error > 0 ? error : -error);
      mass += weight;
      store(side.next + i, old * old_share + next * (1 - old_share));
    }
    const double all = sum_lanes<double>(mass);
    return all > 0 ? sum_lanes<double>(missed) / all : 0;
  }

  // The same for those of a vector of rows whose sums are out of range, and for rows of no weight, on which
  // nothing depends before the last step.
  __attribute__((noinline)) void step_exactly(const TransportSide<T>& side, const TransportSide<T>& other,
                                              int64_t first, bool whole, vdouble& sum, vdouble& full) const {
    for (int l = 0; l < width<double>; ++l) {
      const int64_t i = first + l;
      if (i < side.cloud->rows && in_range(sum[l])) continue;
      const bool needed = i < side.cloud->rows && (whole || side.weight[i] > 0);
      full[l] = needed                 ? -(eps * exact_sum(side, other, i) + shift)
                : i < side.cloud->rows ? side.potential[i]
                                       : 0.0;
      sum[l] = needed ? __builtin_exp((side.potential[i] - full[l]) / eps) : 1.0;
    }
  }
};

}  // namespace DECOCT_ISA
}  // namespace decoct
