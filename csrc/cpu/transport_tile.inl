// A tile of a transport plan, P_ij = exp2(F_i + G_j - c d_ij^p): its sums over rows and columns, the plan
// itself nowhere stored. The weights are in the biases F and G, and so are the norms that make a squared
// distance of a product, -c |p - q|^2 = 2 c p.q - c |p|^2 - c |q|^2.
//
// For a squared distance from a score some 12 vector instructions a vector of pairs, half of them
// multiplications, one of them a load: four rows go together, so that the sums over columns are read and
// written once for all of them.
#pragma once
#include "epilogue.inl"

namespace decoct {
namespace DECOCT_ISA {

// Where c d^p comes from: a score, or differences of the points; and its power.
enum class Cost { squared_score, squared_small, distance_score, distance_small };

template <class T>
struct TransportTile {
  const Cloud<T>*rows, *cols;
  const T *row_bias, *col_bias;  // col_bias: a row for each label where there are labels
  const int64_t* row_labels;
  int64_t col_bias_stride;
  T rate;
  const T* scores;  // of (i0, j0)
  int64_t scores_stride;
  double* row_sums;
  T* column_sums;  // of the tile
};

// r of near pairs (epilogue.inl) by differences.
template <class T>
static __attribute__((noinline)) vec<T> near_distances(const TransportTile<T>& t, vec<T> r, ivec<T> near,
                                                       int64_t i, int64_t j) {
  const Cloud<T>&rows = *t.rows, &cols = *t.cols;
  const T* p = rows.points + i * rows.stride;
  for (int l = 0; l < width<T>; ++l) {
    if (!near[l] || j + l >= cols.rows) continue;
    const T* q = cols.points + (j + l) * cols.stride;
    r[l] = p == q ? rows.norms[i] - rows.norms[i] : (T)squared_distance(p, q, rows.dim);
  }
  return r;
}

template <class T, Cost C>
DECOCT_INLINE vec<T> transport_exponent(const TransportTile<T>& t, const T* score, vec<T> bias, int64_t i,
                                        int64_t j) {
  if constexpr (C == Cost::squared_score) {
    return load(score) * (2 * t.rate) + bias;
  } else {
    vec<T> r;
    if constexpr (C == Cost::distance_score) {
      const vec<T> norms = load(t.cols->norms + j) + t.rows->norms[i];
      r = norms - load(score) * T(2);
      const ivec<T> near = r < norms * kNear<T>;
      if (__builtin_expect(any_lane(near), 0)) r = near_distances(t, r, near, i, j);
    } else {
      r = squared_distances(t.rows->points + i * t.rows->stride, t.cols->panels, j, t.rows->dim);
    }
    if constexpr (C == Cost::squared_small)
      return bias - r * t.rate;
    else
      return bias - sqrt(r) * t.rate;
  }
}

// Kept scores come from far: asked for by so many columns before they are used.
template <class T>
constexpr int64_t kScoresAhead = 12 * width<T>;

template <class T, Cost C, bool Columns, int Count>
DECOCT_INLINE void transport_rows(const TransportTile<T>& t, int64_t i, int64_t i0, int64_t j0,
                                  int64_t columns) {
  const T *score[Count], *column_bias[Count];
  vec<T> row_bias[Count];
  for (int r = 0; r < Count; ++r) {
    score[r] = t.scores + (i + r - i0) * t.scores_stride;
    column_bias[r] = t.col_bias + j0 + (t.row_labels ? t.row_labels[i + r] * t.col_bias_stride : 0);
    row_bias[r] = splat(t.row_bias[i + r]);
  }
  const auto plan = [&](int r, int64_t j) {
    if constexpr (C == Cost::squared_score || C == Cost::distance_score)
      __builtin_prefetch(score[r] + j + kScoresAhead<T>);
    const vec<T> bias = load(column_bias[r] + j) + row_bias[r];
    return exp2_of_any(transport_exponent<T, C>(t, score[r] + j, bias, i + r, j0 + j));
  };
  vec<T> first = {}, second = {}, third = {}, fourth = {};
  for (int64_t j = 0; j < columns; j += width<T>) {
    vec<T> column = plan(0, j);
    first += column;
    if constexpr (Count == 4) {
      const vec<T> k1 = plan(1, j), k2 = plan(2, j), k3 = plan(3, j);
      second += k1;
      third += k2;
      fourth += k3;
      column = (column + k1) + (k2 + k3);
    }
    if constexpr (Columns) store(t.column_sums + j, load(t.column_sums + j) + column);
  }
  t.row_sums[i] += sum_lanes<T>(first);
  if constexpr (Count == 4) {
    t.row_sums[i + 1] += sum_lanes<T>(second);
    t.row_sums[i + 2] += sum_lanes<T>(third);
    t.row_sums[i + 3] += sum_lanes<T>(fourth);
  }
}

// Rows [i0, i1) and columns [j0, j1), of which those past the last row of the cloud have a bias so low that
// they count for nothing.
template <class T, Cost C, bool Columns>
static void transport_tile(const TransportTile<T>& t, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  const int64_t columns = round_up(j1 - j0, width<T>);
  if (Columns) std::memset(t.column_sums, 0, columns * sizeof(T));
  int64_t i = i0;
  for (; i + 4 <= i1; i += 4) transport_rows<T, C, Columns, 4>(t, i, i0, j0, columns);
  for (; i < i1; ++i) transport_rows<T, C, Columns, 1>(t, i, i0, j0, columns);
}

template <class T>
using TransportTileFunction = void (*)(const TransportTile<T>&, int64_t, int64_t, int64_t, int64_t);

template <class T>
static TransportTileFunction<T> choose_transport(Cost cost, bool columns) {
  switch (cost) {
    case Cost::squared_score:
      return columns ? transport_tile<T, Cost::squared_score, true>
                     : transport_tile<T, Cost::squared_score, false>;
    case Cost::squared_small:
      return columns ? transport_tile<T, Cost::squared_small, true>
                     : transport_tile<T, Cost::squared_small, false>;
    case Cost::distance_score:
      return columns ? transport_tile<T, Cost::distance_score, true>
                     : transport_tile<T, Cost::distance_score, false>;
    default:
      return columns ? transport_tile<T, Cost::distance_small, true>
                     : transport_tile<T, Cost::distance_small, false>;
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
