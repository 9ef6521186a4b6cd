// One block of the kernel matrix: rows [i0, i1) of one cloud against rows [j0, j1) of another, tile by tile.
//
//   scores   S = P_rows P_cols^T                              2 D operations a pair
//   epilogue r = |p|^2 + |q|^2 - 2 S, k and k' of r, S <- W = c a_i b_j k', sums of k over rows and columns
//   row side G_rows += W P_cols, column side G_cols += W^T P_rows     2 D operations a pair each
//
// A tile (96 x 192 floats, 72 KiB) stays in the second-level cache between the three, the N x M matrix never
// exists. The gradient of row i is 2 (p_i sum_j W_ij - G_i) for radial kernels and G_i for kernels of the
// inner product.
//
// Near pairs (r < 2^-10 (|p|^2 + |q|^2)) are where the expansion of r cancels: they leave the tile and are
// evaluated from the difference of their points, value and gradient.
#pragma once
#include "products.inl"
#include "small.inl"

namespace decoct {
namespace DECOCT_ISA {

// add_product for D < kSmallDim, where a vector along D would be mostly padding: run along the columns
// instead.
template <class T, int D>
static void add_small_rows(const Block<T>& b, const T* tile, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  const int64_t columns = round_up(j1 - j0, width<T>);
  for (int64_t i = i0; i < i1; ++i) {
    const T* row = tile + (i - i0) * kTileColumns<T>;
    vec<T> sums[D] = {};
    for (int64_t j = 0; j < columns; j += width<T>) {
      const vec<T> w = load(row + j);
      const int64_t column = j0 + j, p = column / panel<T>;
      const T* q = b.cols->panels + p * panel<T> * D + column % panel<T>;
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) sums[d] += w * load(q + d * panel<T>);
    }
#pragma GCC unroll 8
    for (int d = 0; d < D; ++d) b.row_grad[i * D + d] += sum_lanes<T>(sums[d]);
  }
}

template <class T, int D>
static void add_small_cols(const Block<T>& b, const T* tile, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  for (int64_t j = 0; j < j1 - j0; j += width<T>) {
    vec<T> sums[D] = {};
    for (int64_t i = i0; i < i1; ++i) {
      const vec<T> w = load(tile + (i - i0) * kTileColumns<T> + j);
#pragma GCC unroll 8
      for (int d = 0; d < D; ++d) sums[d] += w * b.rows->points[i * D + d];
    }
    const int64_t count = j1 - j0 - j < width<T> ? j1 - j0 - j : width<T>;
    for (int64_t l = 0; l < count; ++l)
      for (int d = 0; d < D; ++d) b.col_grad[(j0 + j + l) * D + d] += sums[d][l];
  }
}

template <class T, int D = kSmallDim - 1>
static void add_small(const Block<T>& b, const T* tile, int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
  if constexpr (D > 0) {
    if (b.rows->dim != D) return add_small<T, D - 1>(b, tile, i0, i1, j0, j1);
    if (b.row_side) add_small_rows<T, D>(b, tile, i0, i1, j0, j1);
    if (b.col_side) add_small_cols<T, D>(b, tile, i0, i1, j0, j1);
  }
}

// The whole block. Returns sum_ij a_i b_j k_ij over it.
template <class T, Profile P, bool Single, Mode M, bool Columns, bool Plan = false>
static double run_block(const Block<T>& b, const TileScratch<T>& own) {
  const Cloud<T>&rows = *b.rows, &cols = *b.cols;
  if constexpr (P == Profile::gaussian && Single && !Plan) {
    if (rows.dim == 1) return small_block<T, 1, M, Columns>(b, own);
    if (rows.dim == 2) return small_block<T, 2, M, Columns>(b, own);
    if (rows.dim == 3) return small_block<T, 3, M, Columns>(b, own);
  }
  TileScratch<T> scratch = own;
  double total = 0;
  for (int64_t j0 = b.j0; j0 < b.j1; j0 += kTileColumns<T>) {
    const int64_t j1 = j0 + kTileColumns<T> < b.j1 ? j0 + kTileColumns<T> : b.j1;
    for (int64_t i0 = b.i0; i0 < b.i1; i0 += kTileHeight) {
      const int64_t i1 = i0 + kTileHeight < b.i1 ? i0 + kTileHeight : b.i1;
      if (Plan && b.kept) {
        scratch.tile = b.kept + i0 * b.kept_stride + j0;
        scratch.stride = b.kept_stride;
      }
      if ((!is_radial(P) || rows.dim >= kSmallDim) && !(Plan && b.kept))
        scores(rows.points, rows.stride, rows.dim, cols.panels, scratch.tile, i0, i1, j0, j1, false,
               scratch.stride);
      total += epilogue<T, P, Single, M, Columns, Plan>(b, scratch, i0, i1, j0, j1);
      if constexpr (M == Mode::gradient) {
        if (rows.dim < kSmallDim) {
          add_small(b, scratch.tile, i0, i1, j0, j1);
          continue;
        }
        if (b.row_side)
          add_product(i1 - i0, j1 - j0, scratch.tile, scratch.stride, 1, cols.points + j0 * cols.stride,
                      cols.stride, b.row_grad + i0 * rows.stride);
        if (b.col_side)
          add_product(j1 - j0, i1 - i0, scratch.tile, 1, scratch.stride, rows.points + i0 * rows.stride,
                      rows.stride, b.col_grad + j0 * cols.stride);
      }
    }
  }
  return total;
}

template <class T>
using BlockFunction = double (*)(const Block<T>&, const TileScratch<T>&);

template <class T, Profile P, bool Single>
static BlockFunction<T> block_for(bool gradient, bool columns) {
  if (gradient)
    return columns ? run_block<T, P, Single, Mode::gradient, true>
                   : run_block<T, P, Single, Mode::gradient, false>;
  return columns ? run_block<T, P, Single, Mode::value, true> : run_block<T, P, Single, Mode::value, false>;
}

template <class T, Profile P>
static BlockFunction<T> plan_block_for(bool gradient, bool columns) {
  if (gradient)
    return columns ? run_block<T, P, true, Mode::gradient, true, true>
                   : run_block<T, P, true, Mode::gradient, false, true>;
  return columns ? run_block<T, P, true, Mode::value, true, true>
                 : run_block<T, P, true, Mode::value, false, true>;
}

template <class T>
static BlockFunction<T> choose_plan_block(Profile profile, bool gradient, bool columns) {
  return profile == Profile::gaussian ? plan_block_for<T, Profile::gaussian>(gradient, columns)
                                      : plan_block_for<T, Profile::laplacian>(gradient, columns);
}

template <class T>
static BlockFunction<T> choose_block(const Kernel& kernel, bool gradient, bool columns) {
  switch (kernel.profile) {
    case Profile::gaussian:
      return kernel.scales == 1 ? block_for<T, Profile::gaussian, true>(gradient, columns)
                                : block_for<T, Profile::gaussian, false>(gradient, columns);
    case Profile::laplacian:
      return block_for<T, Profile::laplacian, false>(gradient, columns);
    case Profile::energy:
      return block_for<T, Profile::energy, false>(gradient, columns);
    case Profile::inverse_multiquadric:
      return block_for<T, Profile::inverse_multiquadric, false>(gradient, columns);
    case Profile::rational_quadratic:
      return block_for<T, Profile::rational_quadratic, false>(gradient, columns);
    case Profile::polynomial:
      return block_for<T, Profile::polynomial, false>(gradient, columns);
    default:
      return block_for<T, Profile::linear, false>(gradient, columns);
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
