// The Gaussian kernel in one to three dimensions, where a pair costs an exponential and little else:
// everything stays in registers, from the differences of the points to the gradient, and no tile is written.
// 6 D + 14 operations a vector of pairs and side. Differences need no care for near pairs.
#pragma once
#include "epilogue.inl"

namespace decoct {
namespace DECOCT_ISA {

template <class T, int D, Mode M, bool Columns>
static double small_tile(const Block<T>& b, const TileScratch<T>& scratch, int64_t i0, int64_t i1, int64_t j0,
                         int64_t j1) {
  const Cloud<T>&rows = *b.rows, &cols = *b.cols;
  const T rate = -b.constants->rate[0], slope = -b.constants->slope[0];
  const int64_t columns = round_up(j1 - j0, width<T>);
  T* column_grad = scratch.copy;  // (D, columns)
  if (Columns) {
    std::memset(column_grad, 0, D * kTileColumns<T> * sizeof(T));
    std::memset(scratch.column_k, 0, kTileColumns<T> * sizeof(T));
  }
  double total = 0;
  for (int64_t i = i0; i < i1; ++i) {
    const T a = rows.weights[i];
    vec<T> p[D], grad[D] = {}, k_sum = {};
    for (int d = 0; d < D; ++d) p[d] = splat(rows.points[i * D + d]);
    for (int64_t j = 0; j < columns; j += width<T>) {
      const T* q = cols.panels + (j0 + j) / panel<T> * panel<T> * D + (j0 + j) % panel<T>;
      vec<T> difference[D], r = {};
      for (int d = 0; d < D; ++d) {
        difference[d] = p[d] - load(q + d * panel<T>);
        r += difference[d] * difference[d];
      }
      const vec<T> k = exp2(r * rate), weighted = k * load(cols.weights + j0 + j);
      k_sum += weighted;
      if constexpr (M == Mode::gradient)
        for (int d = 0; d < D; ++d) grad[d] += weighted * difference[d];
      if constexpr (Columns) {
        const vec<T> share = k * a;
        store(scratch.column_k + j, load(scratch.column_k + j) + share);
        if constexpr (M == Mode::gradient)
          for (int d = 0; d < D; ++d) {
            T* out = column_grad + d * kTileColumns<T> + j;
            store(out, load(out) + share * difference[d]);
          }
      }
    }
    const double row_k = sum_lanes<T>(k_sum);
    total += (double)a * row_k;
    if (b.row_ksum) b.row_ksum[i] += b.kernel_scale * row_k;
    if (M == Mode::gradient && b.row_side)
      for (int d = 0; d < D; ++d) b.row_grad[i * D + d] -= slope * b.weight_scale * a * sum_lanes<T>(grad[d]);
  }
  if constexpr (Columns)
    for (int64_t j = j0; j < j1; ++j) {
      if (cols.ksum) cols.ksum[j] += b.kernel_scale * scratch.column_k[j - j0];
      if (M == Mode::gradient && b.col_side)
        for (int d = 0; d < D; ++d)
          cols.grad[j * D + d] +=
              slope * b.weight_scale * cols.weights[j] * column_grad[d * kTileColumns<T> + j - j0];
    }
  return total;
}

template <class T, Mode M, bool Columns>
static double small_block(const Block<T>& b, const TileScratch<T>& scratch) {
  double total = 0;
  for (int64_t j0 = b.j0; j0 < b.j1; j0 += kTileColumns<T>) {
    const int64_t j1 = j0 + kTileColumns<T> < b.j1 ? j0 + kTileColumns<T> : b.j1;
    for (int64_t i0 = b.i0; i0 < b.i1; i0 += kTileHeight) {
      const int64_t i1 = i0 + kTileHeight < b.i1 ? i0 + kTileHeight : b.i1;
      switch (b.rows->dim) {
        case 1:
          total += small_tile<T, 1, M, Columns>(b, scratch, i0, i1, j0, j1);
          break;
        case 2:
          total += small_tile<T, 2, M, Columns>(b, scratch, i0, i1, j0, j1);
          break;
        default:
          total += small_tile<T, 3, M, Columns>(b, scratch, i0, i1, j0, j1);
      }
    }
  }
  return total;
}

}  // namespace DECOCT_ISA
}  // namespace decoct
