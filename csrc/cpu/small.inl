// The Gaussian kernel in one to three dimensions, where a pair costs an exponential and little else:
// everything stays in registers, from the differences of the points to the gradient, and no tile is written.
// 3 D + 4 operations and an exponential for a pair, 3 D + 1 more where both sides are wanted. A few rows go
// together, so that the sums over rows are read and written once for all of them. Differences need no care
// for near pairs.
#pragma once
#include "epilogue.inl"

namespace decoct {
namespace DECOCT_ISA {

constexpr int kSmallRows = kBytes == 64 ? 4 : 2;  // together with the sums of both sides in registers

template <class T>
constexpr int64_t kSmallColumns =
    4 * kTileColumns<T>;  // points, weights and sums fill half the first-level cache

template <class T>
struct SmallColumns {
  T *k, *grad;  // (columns,) and (D, columns): sums over the rows of a tile, weighted by a
};

// Rows [i, i + Count) against one tile's columns. Returns sum_ij a_i b_j k_ij where the rows are wanted.
template <class T, int D, Mode M, bool Rows, bool Columns, int Count>
DECOCT_INLINE double small_rows(const Block<T>& b, const SmallColumns<T>& sums, int64_t i, int64_t j0,
                                int64_t columns) {
  const Cloud<T>&rows = *b.rows, &cols = *b.cols;
  constexpr bool gradient = M == Mode::gradient;
  const T rate = -b.constants->rate[0], slope = -b.constants->slope[0];
  vec<T> p[Count][D], a[Count], grad[Count][D] = {}, k_sum[Count] = {};
  for (int n = 0; n < Count; ++n) {
    a[n] = splat(rows.weights[i + n]);
    for (int d = 0; d < D; ++d) p[n][d] = splat(rows.points[(i + n) * D + d]);
  }
  for (int64_t j = 0; j < columns; j += width<T>) {
    const T* q = cols.panels + (j0 + j) / panel<T> * panel<T> * D + (j0 + j) % panel<T>;
    vec<T> column_k, column_grad[D];
    if constexpr (Columns) {
      column_k = load(sums.k + j);
      if constexpr (gradient)
        for (int d = 0; d < D; ++d) column_grad[d] = load(sums.grad + d * kSmallColumns<T> + j);
    }
#pragma GCC unroll 4
    for (int n = 0; n < Count; ++n) {
      vec<T> difference[D], r = {};
      for (int d = 0; d < D; ++d) {
        difference[d] = p[n][d] - load(q + d * panel<T>);
        r = d ? r + difference[d] * difference[d] : difference[d] * difference[d];
      }
      const vec<T> k = exp2(r * rate);
      if constexpr (Rows) {
        const vec<T> weighted = k * load(cols.weights + j0 + j);
        k_sum[n] += weighted;
        if constexpr (gradient)
          for (int d = 0; d < D; ++d) grad[n][d] += weighted * difference[d];
      }
      if constexpr (Columns) {
        const vec<T> share = k * a[n];
        column_k += share;
        if constexpr (gradient)
          for (int d = 0; d < D; ++d) column_grad[d] += share * difference[d];
      }
    }
    if constexpr (Columns) {
      store(sums.k + j, column_k);
      if constexpr (gradient)
        for (int d = 0; d < D; ++d) store(sums.grad + d * kSmallColumns<T> + j, column_grad[d]);
    }
  }
  double total = 0;
  if constexpr (Rows)
    for (int n = 0; n < Count; ++n) {
      const double row_k = sum_lanes<T>(k_sum[n]);
      total += (double)rows.weights[i + n] * row_k;
      if (b.row_ksum) b.row_ksum[i + n] += b.kernel_scale * row_k;
      if (gradient && b.row_side)
        for (int d = 0; d < D; ++d)
          b.row_grad[(i + n) * D + d] -=
              slope * b.weight_scale * rows.weights[i + n] * sum_lanes<T>(grad[n][d]);
    }
  return total;
}

template <class T, int D, Mode M, bool Rows, bool Columns>
static double small_tile(const Block<T>& b, const TileScratch<T>& scratch, int64_t i0, int64_t i1, int64_t j0,
                         int64_t j1) {
  const Cloud<T>& cols = *b.cols;
  const int64_t columns = round_up(j1 - j0, width<T>);
  const SmallColumns<T> sums{scratch.tile, scratch.tile + kSmallColumns<T>};
  if (Columns) {
    std::memset(sums.k, 0, kSmallColumns<T> * sizeof(T));
    std::memset(sums.grad, 0, D * kSmallColumns<T> * sizeof(T));
  }
  double total = 0;
  int64_t i = i0;
  for (; i + kSmallRows <= i1; i += kSmallRows)
    total += small_rows<T, D, M, Rows, Columns, kSmallRows>(b, sums, i, j0, columns);
  for (; i < i1; ++i) total += small_rows<T, D, M, Rows, Columns, 1>(b, sums, i, j0, columns);
  if constexpr (Columns)
    for (int64_t j = j0; j < j1; ++j) {
      if (!Rows) total += (double)cols.weights[j] * sums.k[j - j0];
      if (b.col_ksum) b.col_ksum[j] += b.kernel_scale * sums.k[j - j0];
      if (M == Mode::gradient && b.col_side)
        for (int d = 0; d < D; ++d)
          b.col_grad[j * D + d] -= b.constants->slope[0] * b.weight_scale * cols.weights[j] *
                                   sums.grad[d * kSmallColumns<T> + j - j0];
    }
  return total;
}

template <class T, int D, Mode M, bool Columns>
static double small_block(const Block<T>& b, const TileScratch<T>& scratch) {
  // Without a use for the rows' own sums, the columns' give the value too.
  const bool rows = !Columns || b.row_ksum || (M == Mode::gradient && b.row_side);
  const auto tile = rows ? small_tile<T, D, M, true, Columns> : small_tile<T, D, M, !Columns, Columns>;
  double total = 0;
  for (int64_t j0 = b.j0; j0 < b.j1; j0 += kSmallColumns<T>) {
    const int64_t j1 = j0 + kSmallColumns<T> < b.j1 ? j0 + kSmallColumns<T> : b.j1;
    for (int64_t i0 = b.i0; i0 < b.i1; i0 += kTileHeight)
      total += tile(b, scratch, i0, i0 + kTileHeight < b.i1 ? i0 + kTileHeight : b.i1, j0, j1);
  }
  return total;
}

}  // namespace DECOCT_ISA
}  // namespace decoct
