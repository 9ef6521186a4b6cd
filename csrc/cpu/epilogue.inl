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
  T *tile, *copy, *column_k, *column_w;
};

template <class T>
static TileScratch<T> tile_layout(Arena& arena) {
  TileScratch<T> s;
  s.tile = arena.take<T>(kTileHeight * kTileColumns<T>);
  s.copy = arena.take<T>(kTileColumns<T> * panel<T>);
  s.column_k = arena.take<T>(kTileColumns<T>);
  s.column_w = arena.take<T>(kTileColumns<T>);
  return s;
}

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
};

template <class T>
DECOCT_INLINE T squared_difference(const T* p, const T* q, int64_t dim) {
  double total = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double difference = (double)p[d] - (double)q[d];
    total += difference * difference;
  }
  return (T)total;
}

// The near lanes of one vector of pairs. Returns their kernel values (zero elsewhere) and adds what the tile
// would have.
template <class T, Profile P, Mode M>
static __attribute__((noinline)) vec<T> near_pairs(const Block<T>& b, int64_t i, int64_t j,
                                                   const ivec<T>& near, double* row_k, T* column_k) {
  vec<T> values = {};
  const Cloud<T>&rows = *b.rows, &cols = *b.cols;
  const T* p = rows.points + i * rows.stride;
  for (int l = 0; l < width<T>; ++l) {
    if (!near[l] || j + l >= b.j1) continue;
    const T* q = cols.points + (j + l) * cols.stride;
    const Jet<vec<T>> jet = profile<P, 1, Math>(*b.constants, splat(squared_difference(p, q, rows.dim)));
    const T k = jet.k[0];
    values[l] = k;
    if (M == Mode::kernel) continue;
    *row_k += (double)k * cols.weights[j + l];
    if (column_k) column_k[l] += k * rows.weights[i];
    if (M != Mode::gradient) continue;
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

// Scores to weights, in place. Returns sum_ij a_i b_j k_ij of the tile.
template <class T, Profile P, bool Single, Mode M, bool Columns>
static double epilogue(const Block<T>& b, const TileScratch<T>& scratch, int64_t i0, int64_t i1, int64_t j0,
                       int64_t j1) {
  constexpr bool exponent = P == Profile::gaussian && Single;  // k' is a multiple of k, and exp2 needs no r
  const Cloud<T>&rows = *b.rows, &cols = *b.cols;
  const ProfileConstants<T> constants = *b.constants;
  [[maybe_unused]] const T near_bound = T(1.0 / 1024);
  const int64_t columns = round_up(j1 - j0, width<T>);
  const bool small = is_radial(P) && rows.dim < kSmallDim;
  double total = 0;
  for (int64_t i = i0; i < i1; ++i) {
    T* row = scratch.tile + (i - i0) * kTileColumns<T>;
    const T a = rows.weights[i], norm = rows.norms[i];
    const T scale = (exponent ? -constants.slope[0] : T(1)) * b.weight_scale * a;
    vec<T> k_sum = {}, w_sum = {};
    double near_k = 0;
    for (int64_t j = 0; j < columns; j += width<T>) {
      vec<T> weight = load(cols.weights + j0 + j);
      Jet<vec<T>> jet{};
      ivec<T> near = {};
      vec<T> near_values = {};
      if constexpr (is_radial(P)) {
        const vec<T> norms = load(cols.norms + j0 + j) + norm;
        vec<T> r = small ? squared_distances(rows.points + i * rows.stride, cols.panels, j0 + j, rows.dim)
                         : norms - load(row + j) * T(2);
        near = r < norms * near_bound;
        if (__builtin_expect(any_lane(near), 0)) {
          near_values =
              near_pairs<T, P, M>(b, i, j0 + j, near, &near_k, Columns ? scratch.column_k + j : nullptr);
          weight = near ? vec<T>{} : weight;
          r = near ? norms : r;
        }
        jet = profile < P, M == Mode::gradient && !exponent ? 1 : 0, Math > (constants, r);
      } else {
        jet = profile<P, M == Mode::gradient ? 1 : 0, Math>(constants, load(row + j));
      }
      if constexpr (M == Mode::kernel) {
        store(row + j, near ? near_values : jet.k);
        continue;
      }
      const vec<T> k = jet.k * weight;
      k_sum += k;
      if constexpr (M == Mode::gradient) {
        const vec<T> w = (exponent ? k : jet.k1 * weight) * scale;
        store(row + j, w);
        if constexpr (!exponent) w_sum += w;
        if constexpr (Columns && !exponent) store(scratch.column_w + j, load(scratch.column_w + j) + w);
      }
      if constexpr (Columns) {
        // Weighted by a alone; a near lane's own share was added above.
        const vec<T> share = jet.k * a;
        const vec<T> kept = near ? vec<T>{} : share;
        store(scratch.column_k + j, load(scratch.column_k + j) + (is_radial(P) ? kept : share));
        if constexpr (exponent && M == Mode::gradient)
          store(scratch.column_w + j, load(scratch.column_w + j) + kept);
      }
    }
    if constexpr (M == Mode::kernel) continue;
    const double tile_k = sum_lanes<T>(k_sum);
    const double row_k = tile_k + near_k;
    total += (double)a * row_k;
    if (b.row_ksum) b.row_ksum[i] += b.kernel_scale * row_k;
    if (M == Mode::gradient && b.row_side)
      b.row_wsum[i] += exponent ? (double)scale * tile_k : (double)sum_lanes<T>(w_sum);
  }
  if constexpr (Columns) {
    for (int64_t j = j0; j < j1; ++j) {
      if (b.col_ksum) b.col_ksum[j] += b.kernel_scale * scratch.column_k[j - j0];
      if (M == Mode::gradient && b.col_wsum) {
        const double factor = exponent ? -(double)constants.slope[0] * b.weight_scale * cols.weights[j] : 1.0;
        b.col_wsum[j] += factor * scratch.column_w[j - j0];
      }
    }
  }
  return total;
}

}  // namespace DECOCT_ISA
}  // namespace decoct
