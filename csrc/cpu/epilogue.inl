// From a tile of scores to weights: the profile, sums of k over rows and columns, and the near pairs.
#pragma once
#include "../kernel_profiles.h"
#include "cloud.inl"

namespace decoct {
namespace DECOCT_ISA {

struct Math {
  template <class V>
  DECOCT_INLINE V exp2(V v) {
    return DECOCT_ISA::exp2(v);
  }
  template <class V>
  DECOCT_INLINE V exp2_of_any(V v) {
    return DECOCT_ISA::exp2_of_any(v);
  }
  template <class V>
  DECOCT_INLINE V sqrt(V v) {
    return DECOCT_ISA::sqrt(v);
  }
  DECOCT_INLINE vfloat power(vfloat v, float e) { return DECOCT_ISA::power<float>(v, e); }
  DECOCT_INLINE vdouble power(vdouble v, double e) { return DECOCT_ISA::power<double>(v, e); }
  template <class V>
  DECOCT_INLINE V inverse_or_zero(V d) {
    const V zero = d - d;  // NaN where d is not finite
    return d == zero ? zero : V(1 / d);
  }
};

template <class T>
struct TileScratch {
  T* tile;
  int64_t stride;                        // of a row of the tile
  T *column_k, *column_w, *column_near;  // sums over the rows of a tile; near pairs' share of the first
};

// Columns of a tile of scores that are kept elsewhere.
template <class T>
constexpr int64_t kKeptColumns = 4 * kTileColumns<T>;

template <class T>
static TileScratch<T> tile_layout(Arena& arena) {
  TileScratch<T> s;
  s.tile = arena.take<T>(kTileHeight * kTileColumns<T>);
  s.stride = kTileColumns<T>;
  s.column_k = arena.take<T>(kKeptColumns<T>);
  s.column_w = arena.take<T>(kTileColumns<T>);
  s.column_near = arena.take<T>(kTileColumns<T>);
  return s;
}

// Pairs with r below this times |p|^2 + |q|^2 are near.
template <class T>
constexpr T kNear = T(1.0 / 1024);

enum class Mode { value, gradient, kernel };

template <class T>
struct Block {
  const Cloud<T>*rows, *cols;
  int64_t i0, i1, j0, j1;
  bool row_side, col_side;
  T weight_scale;          // W_ij = weight_scale a_i b_j k'
  double kernel_scale;     // ksum_i += kernel_scale sum_j b_j k_ij
  T *row_grad, *col_grad;  // accumulators of the slab in use, or nullptr
  double *row_wsum, *col_wsum, *row_ksum, *col_ksum;
  const ProfileConstants<T>* constants;
  // Of plans: what is added to the exponents, for columns zero past the last; where rows have labels, one row
  // of column biases for each label. Scores that are kept lie in `kept`, with all columns of the cloud.
  const T *row_bias, *col_bias;
  const int64_t* row_labels;
  int64_t col_bias_stride;
  T* kept;
  int64_t kept_stride;

  const T* column_bias(int64_t row) const {
    return row_labels ? col_bias + row_labels[row] * col_bias_stride : col_bias;
  }
};

// The near lanes of one vector of pairs. Returns their kernel values (zero elsewhere) and adds what the tile
// would have.
template <class T, Profile P, Mode M, bool Plan>
static __attribute__((noinline)) vec<T> near_pairs(const Block<T>& b, int64_t i, int64_t j,
                                                   const ivec<T>& near, double* row_k, T* column_k) {
  vec<T> values = {};
  const Cloud<T>&rows = *b.rows, &cols = *b.cols;
  const T* p = rows.points + i * rows.stride;
  for (int l = 0; l < width<T>; ++l) {
    if (!near[l] || j + l >= b.j1) continue;
    const T* q = cols.points + (j + l) * cols.stride;
    // A point and itself: 0, or NaN where it is not finite.
    const T r = p == q ? rows.norms[i] - rows.norms[i] : (T)squared_distance(p, q, rows.dim);
    const vec<T> bias = splat(Plan ? b.row_bias[i] + b.column_bias(i)[j + l] : T(0));
    const Jet<vec<T>> jet = profile<P, 1, Math, false, Plan>(*b.constants, splat(r), bias);
    const T k = jet.k[0];
    values[l] = k;
    if (M == Mode::kernel) continue;
    *row_k += (double)k * cols.weights[j + l];
    if (column_k) column_k[l] += k * rows.weights[i];
    if (M != Mode::gradient || (p == q && r == 0)) continue;
    const T w = b.weight_scale * rows.weights[i] * cols.weights[j + l] * jet.k1[0];
    T* row_grad = b.row_side ? b.row_grad + i * rows.stride : nullptr;
    T* col_grad = b.col_side ? b.col_grad + (j + l) * cols.stride : nullptr;
    for (int64_t d = 0; d < rows.dim; ++d) {
      const T step = w * (p[d] - q[d]);
      if (row_grad) row_grad[d] -= step;
      if (col_grad) col_grad[d] += step;
    }
  }
  return values;
}

// |p_i - q_j|^2 for a vector of columns: below kSmallDim by differences, which cost no more there and lose
// nothing.
template <class T>
DECOCT_INLINE vec<T> squared_distances(const T* p, const T* panels, int64_t column, int64_t dim) {
  const T* q = panels + column / panel<T> * panel<T> * dim + column % panel<T>;
  vec<T> r = {};
  for (int64_t d = 0; d < dim; ++d) {
    const vec<T> difference = splat(p[d]) - load(q + d * panel<T>);
    r += difference * difference;
  }
  return r;
}

// What a row of the tile adds up to.
template <class T>
struct RowSums {
  vec<T> k, w;    // sum_j b_j k_ij and sum_j W_ij of the vectors so far
  double near_k;  // near pairs' share of sum_j b_j k_ij
};

// Scores of one tile to weights, in place.
template <class T, Profile P, bool Single, Mode M, bool Columns, bool Plan>
struct TileEpilogue {
  // k' of one gaussian is a multiple of k.
  static constexpr bool kExponent = P == Profile::gaussian && Single;
  // What a near pair loses of a squared cost is as little against eps as what any other pair loses, and
  // differences lose nothing; but the weight of a pointed kernel's near pair is so large that its row's sums
  // lose in the gradient.
  template <bool Small>
  static constexpr bool kHasNear = is_radial(P) && !(Plan && P == Profile::gaussian) &&
                                   !(Small && (M != Mode::gradient || P == Profile::gaussian));
  static constexpr int kOrder = M == Mode::gradient && !kExponent ? 1 : 0;

  const Block<T>& b;
  const TileScratch<T>& scratch;
  int64_t i0, j0, columns;

  ProfileConstants<T> constants() const {
    ProfileConstants<T> c = *b.constants;
    if (Single) c.scales = 1;
    return c;
  }
  T* tile_row(int64_t i) const { return scratch.tile + (i - i0) * scratch.stride; }
  T scale(int64_t i) const {
    return (kExponent ? -b.constants->slope[0] : T(1)) * b.weight_scale * b.rows->weights[i];
  }
  vec<T> norms(int64_t i, int64_t j) const { return load(b.cols->norms + j0 + j) + b.rows->norms[i]; }
  vec<T> bias(int64_t i, int64_t j) const {
    if constexpr (!Plan) return vec<T>{};
    return load(b.column_bias(i) + j0 + j) + b.row_bias[i];
  }

  template <bool Small>
  vec<T> argument(const T* score, vec<T> norms, int64_t i, int64_t j) const {
    if constexpr (!is_radial(P)) return load(score);
    if constexpr (!Small) return norms - load(score) * T(2);
    return squared_distances(b.rows->points + i * b.rows->stride, b.cols->panels, j0 + j, b.rows->dim);
  }

  // One vector of pairs: `weight` and `a` are zero where a lane is to count for nothing.
  DECOCT_INLINE void weigh(const ProfileConstants<T>& constants, const TileScratch<T>& scratch, vec<T> s,
                           vec<T> bias, vec<T> weight, vec<T> a, T scale, T* out, int64_t j, vec<T>& k_sum,
                           vec<T>& w_sum) {
    const Jet<vec<T>> jet = profile<P, kOrder, Math, false, Plan>(constants, s, bias);
    if constexpr (M == Mode::kernel) return store(out, jet.k);
    const vec<T> k = jet.k * weight;
    k_sum += k;
    if constexpr (Columns) store(scratch.column_k + j, load(scratch.column_k + j) + jet.k * a);
    if constexpr (M == Mode::gradient) {
      const vec<T> w = (kExponent ? k : jet.k1 * weight) * scale;
      store(out, w);
      if constexpr (!kExponent) {
        w_sum += w;
        if constexpr (Columns) store(scratch.column_w + j, load(scratch.column_w + j) + w);
      }
    }
  }

  // Vectors from j on, up to the first that holds a near pair: a loop without calls, on its own, keeps its
  // sums and constants in registers.
  template <bool Small>
  __attribute__((noinline)) int64_t far_vectors(int64_t i, int64_t j, RowSums<T>& sums) const {
    const ProfileConstants<T> constants = this->constants();
    T* row = tile_row(i);
    const T row_scale = scale(i);
    const vec<T> a = splat(b.rows->weights[i]);
    vec<T> k_sum = sums.k, w_sum = sums.w;
    for (; j < columns; j += width<T>) {
      const vec<T> both = norms(i, j), s = argument<Small>(row + j, both, i, j);
      if (kHasNear<Small> && __builtin_expect(any_less(s, both * kNear<T>), 0)) break;
      weigh(constants, scratch, s, bias(i, j), load(b.cols->weights + j0 + j), a, row_scale, row + j, j,
            k_sum, w_sum);
    }
    sums.k = k_sum;
    sums.w = w_sum;
    return j;
  }

  template <bool Small>
  __attribute__((noinline)) void near_vector(int64_t i, int64_t j, RowSums<T>& sums) const {
    T* out = tile_row(i) + j;
    const vec<T> both = norms(i, j);
    const vec<T> s = argument<Small>(out, both, i, j);
    const ivec<T> near = s < both * kNear<T>;
    const vec<T> values = near_pairs<T, P, M, Plan>(b, i, j0 + j, near, &sums.near_k,
                                                    Columns ? scratch.column_near + j : nullptr);
    const vec<T> weight = load(b.cols->weights + j0 + j), a = splat(b.rows->weights[i]);
    weigh(constants(), scratch, near ? both : s, bias(i, j), near ? vec<T>{} : weight, near ? vec<T>{} : a,
          scale(i), out, j, sums.k, sums.w);
    if (M == Mode::kernel) store(out, near ? values : load(out));
  }

  // Returns a_i sum_j b_j k_ij.
  template <bool Small>
  double run_row(int64_t i) const {
    RowSums<T> sums{};
    for (int64_t j = 0; (j = far_vectors<Small>(i, j, sums)) < columns; j += width<T>)
      near_vector<Small>(i, j, sums);
    if (M == Mode::kernel) return 0;
    const double tile_k = sum_lanes<T>(sums.k), row_k = tile_k + sums.near_k;
    if (b.row_ksum) b.row_ksum[i] += b.kernel_scale * row_k;
    if (M == Mode::gradient && b.row_side)
      b.row_wsum[i] += kExponent ? (double)scale(i) * tile_k : (double)sum_lanes<T>(sums.w);
    return (double)b.rows->weights[i] * row_k;
  }

  void finish_columns(int64_t j1) const {
    for (int64_t j = j0; j < j1; ++j) {
      const double k = scratch.column_k[j - j0];
      if (b.col_ksum) b.col_ksum[j] += b.kernel_scale * (k + scratch.column_near[j - j0]);
      if (M == Mode::gradient && b.col_wsum)
        b.col_wsum[j] += kExponent ? -(double)b.constants->slope[0] * b.weight_scale * b.cols->weights[j] * k
                                   : (double)scratch.column_w[j - j0];
    }
  }
};

// Returns sum_ij a_i b_j k_ij of the tile.
template <class T, Profile P, bool Single, Mode M, bool Columns, bool Plan = false>
static double epilogue(const Block<T>& b, const TileScratch<T>& scratch, int64_t i0, int64_t i1, int64_t j0,
                       int64_t j1) {
  const TileEpilogue<T, P, Single, M, Columns, Plan> tile{b, scratch, i0, j0, round_up(j1 - j0, width<T>)};
  if constexpr (Columns)
    for (T* sums : {scratch.column_k, scratch.column_w, scratch.column_near})
      std::memset(sums, 0, kTileColumns<T> * sizeof(T));
  const bool small = is_radial(P) && b.rows->dim < kSmallDim;
  double total = 0;
  for (int64_t i = i0; i < i1; ++i)
    total += small ? tile.template run_row<is_radial(P)>(i) : tile.template run_row<false>(i);
  if constexpr (Columns) tile.finish_columns(j1);
  return total;
}

}  // namespace DECOCT_ISA
}  // namespace decoct
