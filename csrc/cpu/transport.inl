// Passes over the pairs of a transport problem: with S_ij = exp((f_i + g_j - C_ij) / eps), the sums
//   R_i = sum_j b_j S_ij,   Q_j = sum_i a_i S_ij
// give both half-steps, T(g)_i = f_i - eps log R_i and T(f)_j = g_j - eps log Q_j, from one product and one
// exponential a pair and without maxima. A sum that is out of range is made again from logarithms, row by
// row.
//
// Rows are cut into bands, each with sums of its own over the columns, which are added in order: the cut is a
// matter of the shape, so that results do not depend on threads. A symmetric term does the pairs on and above
// the diagonal. Scores of few rows, or within the caller's budget, are made once and kept. The last pass
// gives the derivative by the rows too: their next potentials only scale it.
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

// Blocks on the diagonal of a symmetric term are as high: a multiple of every vector's width.
constexpr int64_t kDiagonalRows = 16;
constexpr int64_t kMostBands = 32;

// Sums below it or above its inverse have lost terms.
template <class T>
constexpr double kLeastSum = sizeof(T) == 4 ? 1e-28 : 1e-280;

inline int64_t band_rows(int64_t rows) {
  constexpr int64_t unit = kTileHeight / 2;
  return round_up((rows + kMostBands - 1) / kMostBands, rows <= kMostBands * unit ? unit : 2 * unit);
}
// The last band takes the rows that are too few for one of their own.
inline int64_t bands_of(int64_t rows) {
  if (rows == 0) return 0;
  const int64_t height = band_rows(rows), bands = (rows + height - height / 3) / height;
  return bands ? bands : 1;
}

// The larger one; NaN where either is.
inline double larger(double p, double q) {
  return p > q || p != p ? p : q;
}

// Of all mass, 0 where there is none.
static inline double share_of(vdouble missed, vdouble mass) {
  const double all = sum_lanes<double>(mass);
  return all == 0 ? 0 : sum_lanes<double>(missed) / all;
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
  double eps = 0;
  double shift = 0,
         next_shift = 0;  // of partial transport, the multiplier of its mass before and after a step
  bool weighted = true;   // whether the sums have the weights of their own row or column
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
      for (int64_t i = side.cloud->rows; i < side.padded(); ++i) out[i] = kNothing<T>;
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

  // task(band, first row, last, worker).
  template <class Task>
  void for_bands(const Task& task) const {
    const int64_t count = rows.cloud->rows, height = band_rows(count), bands = bands_of(count);
    const auto run = [&](int64_t band, int worker) {
      task(band, band * height, band + 1 < bands ? (band + 1) * height : count, worker);
    };
    for_tasks(bands, threads, run, cpu::Share::numbered);  // kept scores are in the cache of their worker
  }

  // use(first row, last, first column, last) for a band's blocks on and above the diagonal: small squares on
  // it and what lies right of them.
  template <class Use>
  static void for_half(int64_t i0, int64_t i1, int64_t count, Use use) {
    for (int64_t i = i0; i < i1; i += kDiagonalRows) {
      const int64_t end = i + kDiagonalRows < i1 ? i + kDiagonalRows : i1;
      use(i, end, i, end);
      if (end < i1) use(i, end, end, i1);
    }
    if (i1 < count) use(i0, i1, i1, count);
  }

  // `all`: of a symmetric term below the diagonal too.
  void keep_scores(bool all) const {
    if (!kept) return;
    const Cloud<T>&from = *rows.cloud, &to = *cols.cloud;
    const auto keep = [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
      for (int64_t j = j0; j < j1; j += kTileColumns<T>)
        for (int64_t i = i0; i < i1; i += kTileHeight)
          scores(from.points, from.stride, from.dim, to.panels, kept + i * kept_stride + j, i,
                 i + kTileHeight < i1 ? i + kTileHeight : i1, j,
                 j + kTileColumns<T> < j1 ? j + kTileColumns<T> : j1, false, kept_stride);
    };
    for_bands([&](int64_t, int64_t i0, int64_t i1, int) {
      if (!symmetric || all) return keep(i0, i1, 0, to.rows);
      // A small square goes with what lies right of it, as whole register tiles.
      for (int64_t i = i0; i < i1; i += kDiagonalRows)
        keep(i, i + kDiagonalRows < i1 ? i + kDiagonalRows : i1, i, i1);
      keep(i0, i1, i1, to.rows);
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
  void sum() {
    weighted = true;
    set_biases(true);
    const int64_t count = cols.cloud->rows;
    for_bands([&](int64_t band, int64_t i0, int64_t i1, int worker) {
      double* columns = clear_band(band);
      std::memset(rows.cloud->ksum + i0, 0, (i1 - i0) * sizeof(double));
      const TileScratch<T> tile = scratch(worker);
      if (!symmetric) return sum_block(i0, i1, 0, count, columns, tile);
      for_half(i0, i1, count, [&](int64_t r0, int64_t r1, int64_t j0, int64_t j1) {
        sum_block(r0, r1, j0, j1, r0 == j0 ? nullptr : columns, tile);
      });
    });
    if (!symmetric) std::memset(cols.cloud->ksum, 0, count * sizeof(double));
    add_bands();
  }

  double* clear_band(int64_t band) const {
    const int64_t count = cols.cloud->rows;
    double* sums = cols.bands + band * count;
    std::memset(sums, 0, count * sizeof(double));
    return sums;
  }
  void add_bands() const {
    const int64_t count = cols.cloud->rows, bands = bands_of(rows.cloud->rows);
    for (int64_t band = 0; band < bands; ++band)
      for (int64_t j = 0; j < count; ++j) cols.cloud->ksum[j] += cols.bands[band * count + j];
  }

  // Rows [i0, i1) and columns [j0, j1) of the plan without weights.
  Block<T> plan_block(int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
    const Cloud<T>& cloud = *rows.cloud;
    Block<T> b{};
    b.rows = &cloud;
    b.cols = cols.cloud;
    b.i0 = i0;
    b.i1 = i1;
    b.j0 = j0;
    b.j1 = j1;
    b.kernel_scale = 1;
    b.weight_scale = 1;
    b.constants = &constants;
    b.row_bias = cloud.bias;
    b.col_bias = cols.bias;
    b.row_labels = rows.labels;
    b.col_bias_stride = cols.padded();
    b.kept = kept;
    b.kept_stride = kept_stride;
    b.row_ksum = cloud.ksum;
    return b;
  }
  BlockFunction<T> plan_function(bool columns) const {
    return choose_plan_block<T>(a.clouds.kernel.profile, true, columns);
  }

  // R_i and, over all columns for every row, sums of W_ij = a_i b_j S_ij (p = 2) or that over d_ij (p = 1)
  // and of W_ij q_j; with `columns` Q_j too. Scores that were kept are overwritten.
  void differentiate(bool columns) {
    weighted = false;
    set_biases(false);
    if (symmetric && kept && squared()) return differentiate_half();
    for_bands([&](int64_t band, int64_t i0, int64_t i1, int worker) {
      clear_accumulators(*rows.cloud, i0, i1);
      Block<T> b = plan_block(i0, i1, 0, cols.cloud->rows);
      b.row_side = true;
      b.row_grad = rows.cloud->grad;
      b.row_wsum = rows.cloud->wsum;
      b.col_ksum = columns ? clear_band(band) : nullptr;
      plan_function(columns)(b, scratch(worker));
    });
    if (!columns) return;
    std::memset(cols.cloud->ksum, 0, cols.cloud->rows * sizeof(double));
    add_bands();
  }

  // The same from the pairs on and above the diagonal: W takes the place of the scores there, and serves the
  // rows below it transposed.
  void differentiate_half() const {
    const Cloud<T>& cloud = *rows.cloud;
    const int64_t count = cloud.rows;
    for_bands([&](int64_t band, int64_t i0, int64_t i1, int worker) {
      clear_accumulators(cloud, i0, i1);
      double* columns = clear_band(band);
      for_half(i0, i1, count, [&](int64_t r0, int64_t r1, int64_t j0, int64_t j1) {
        Block<T> b = plan_block(r0, r1, j0, j1);
        b.col_ksum = r0 == j0 ? nullptr : columns;
        plan_function(b.col_ksum)(b, scratch(worker));
      });
    });
    add_bands();
    for_bands([&](int64_t, int64_t i0, int64_t i1, int) {
      for (int64_t i = i0; i < i1; ++i) cloud.wsum[i] = (double)cloud.weights[i] * cloud.ksum[i];
      for_half(i0, i1, count, [&](int64_t r0, int64_t r1, int64_t j0, int64_t j1) {
        add_weighted(r0, r1, j0, j1, kept + r0 * kept_stride + j0, kept_stride, 1);
        if (r0 != j0 && j1 <= i1) add_weighted(j0, j1, r0, r1, kept + r0 * kept_stride + j0, 1, kept_stride);
      });
      add_weighted(i0, i1, 0, i0, kept + i0, 1, kept_stride);
    });
  }

  // Sums over columns [j0, j1) of W_ij q_j for rows [i0, i1), W addressed by two strides.
  void add_weighted(int64_t i0, int64_t i1, int64_t j0, int64_t j1, const T* w, int64_t row,
                    int64_t step) const {
    const Cloud<T>& cloud = *rows.cloud;
    for (int64_t j = j0; j < j1; j += kTileColumns<T>)
      for (int64_t i = i0; i < i1; i += kTileHeight)
        add_product(i + kTileHeight < i1 ? kTileHeight : i1 - i,
                    j + kTileColumns<T> < j1 ? kTileColumns<T> : j1 - j, w + (i - i0) * row + (j - j0) * step,
                    row, step, cloud.points + j * cloud.stride, cloud.stride, cloud.grad + i * cloud.stride);
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

  // What differentiate() sums for row i, over R_i, which is then 1. Returns log R_i without the row's
  // potential.
  double exact_derivative(int64_t i) const {
    const Cloud<T>&from = *rows.cloud, &to = *cols.cloud;
    const T* p = from.points + i * from.stride;
    T* sums = from.grad + i * from.stride;
    for (int64_t d = 0; d < from.stride; ++d) sums[d] = 0;
    from.wsum[i] = 0;
    from.ksum[i] = 1;
    const double log_sum = exact_sum(rows, cols, i);
    for (int64_t j = 0; j < to.rows; ++j) {
      if (to.weights[j] == 0) continue;
      const T* q = to.points + j * to.stride;
      const double plan = (double)to.weights[j] * __builtin_exp(exponent(rows, cols, i, j) - log_sum);
      double w = (double)from.weights[i] * plan;
      if (!squared()) {
        const double r = squared_distance(p, q, from.dim);
        w = r > 0 ? w / __builtin_sqrt(r) : 0;
      }
      from.wsum[i] += w;
      for (int64_t d = 0; d < from.dim; ++d) sums[d] += (T)(w * (double)q[d]);
    }
    return log_sum;
  }

  // The next potentials of one side, from the sums of a pass: T(g), damped where the marginal may be missed,
  // averaged with the old ones unless `whole`. Returns by what share of all mass the marginal is missed. Of
  // partial transport T(g) alone, without the multiplier.
  double step(const TransportSide<T>& side, const TransportSide<T>& other, bool whole) const {
    constexpr double ln2 = 0.69314718055994530942;
    const double damping = 1 / (1 + eps / side.reach), old_share = whole ? 0.0 : 0.5;
    const bool balanced = side.reach == __builtin_inf(), partial = a.mass > 0;
    vdouble missed = {}, mass = {};
    const int64_t count = side.cloud->rows;
    for (int64_t i = count; i < round_up(count, width<double>); ++i) side.cloud->ksum[i] = 1;
    for (int64_t i = 0; i < count; i += width<double>) {
      const vdouble weight = load(side.weight + i), old = load(side.potential + i);
      vdouble sum = load(side.cloud->ksum + i);
      if (weighted) sum /= weight;
      const auto [log_m, exponent] = log2_parts<double>(sum);
      vdouble full = old - (log_m + exponent) * (eps * ln2) + (sum - sum);
      if (__builtin_expect(finite && any_lane(~((sum > kLeastSum<T>)&(sum < 1 / kLeastSum<T>))), 0))
        step_exactly(side, other, i, whole, sum, full);
      if (partial) {
        store(side.next + i, full + shift);
        continue;
      }
      const vdouble next = full * damping;
      const vdouble kept = balanced ? splat(1.0) : exp2_of_any((next - full) * (kLog2e / eps));
      const vdouble error = sum - kept;
      missed += weight == 0 ? vdouble{} : weight * (error > 0 ? error : -error);
      mass += weight;
      store(side.next + i, old * old_share + next * (1 - old_share));
    }
    return share_of(missed, mass);
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
