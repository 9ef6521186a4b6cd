// From the scores x.y of a tile to weights, on registers: the profile, sums over rows, and the near pairs'
// marks.
#pragma once
#include "near.cuh"

namespace decoct::cuda {

// Adds `factor` times the biases of a plan's pairs to their scores.
template <class T, int M, int N>
DECOCT_DEVICE void add_biases(const Problem<T>& p, const Pairs<T>& q, T (&s)[M][N][4], int row, int column,
                              T factor) {
  const PlanBias<T> bias = plan_bias(p, q);
  const int first_i = q.row_begin + row + lane_index() / 4, first_j = column + lane_index() % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = first_i + m * 16 + h * 8;
      if (i >= q.row_end) continue;
      const T own = bias.of_row(q.first_row + i);
      const T* columns = bias.columns_of(q.first_row + i) + q.first_column;
#pragma unroll
      for (int c = 0; c < 2 * N; ++c) {
        const int j = first_j + c / 2 * 8 + c % 2;
        if (j < q.column_end) s[m][c / 2][2 * h + c % 2] += factor * (own + columns[j] * bias.unit);
      }
    }
}

// One tile: `row` and `column` are those of this warp within it, `first` the tile's first column. Scores
// become weights in place; returns whether this lane saw a near pair. Plan: of a laplacian kernel with
// biases; those of a gaussian one are added to its scores.
template <class A, Profile P, bool One, bool Plan, int Width, int M, int N>
DECOCT_DEVICE bool weigh_as(const Problem<typename A::T>& p, const Pairs<typename A::T>& q,
                            typename A::T (&s)[M][N][4], int row, int column, int first,
                            RowTotals<M>& totals) {
  using T = typename A::T;
  constexpr bool multiple = P == Profile::gaussian && One;            // k' of k
  constexpr int together = 2 * N / (sizeof(T) / 4) / (Plan ? 4 : 1);  // of a row, as far as registers reach
  const T factor = !multiple || q.kernel ? T(1) : -q.constants->slope[0];
  // This lane's first row and column; the others lie at constant distances.
  const int i = q.row_begin + row + lane_index() / 4, j = first + column + lane_index() % 4 * 2;
  const T *row_norms = q.rows->norms + q.first_row + i, *row_weights = q.rows->weights + q.first_row + i;
  const T* column_norms = q.columns->norms + q.first_column + j;
  const T* column_weights = q.columns->weights + q.first_column + j;
  NearMask<M, N> near;
  T norms[2 * N], weights[2 * N];
#pragma unroll
  for (int c = 0; c < 2 * N; ++c) {
    const int at = c / 2 * 8 + c % 2;
    const bool inside = at < q.column_end - j;
    norms[c] = inside ? column_norms[at] : T(0);
    weights[c] = inside ? column_weights[at] : T(0);
  }
  if constexpr (is_radial(P))
    if (sets_apart(p)) exclude_self(q, s, row, first + column, (T)INFINITY);
  // 2^(bias - rate r) is that of r less bias / rate, and r is less twice the score.
  if constexpr (multiple)
    if (p.plan) add_biases(p, q, s, row, first + column, T(0.5) / q.constants->rate[0]);
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int at = m * 16 + h * 8;
      const bool inside = at < q.row_end - i;
      const T norm = inside ? row_norms[at] : T(0);
      const T scale = inside ? row_weights[at] * q.scale * factor : T(0);
      T k_sum = 0, w_sum = 0;
#pragma unroll
      for (int begin = 0; begin < 2 * N; begin += together) {
        Values<T, together> arguments, counted, biases{};
        if constexpr (Plan) {
          const PlanBias<T> bias = plan_bias(p, q);
          const T own = inside ? bias.of_row(q.first_row + i + at) : T(0);
          const T* from = bias.columns_of(inside ? q.first_row + i + at : 0) + q.first_column + j;
#pragma unroll
          for (int v = 0; v < together; ++v) {
            const int along = (begin + v) / 2 * 8 + (begin + v) % 2;
            biases.v[v] = along < q.column_end - j ? own + from[along] * bias.unit : T(0);
          }
        }
#pragma unroll
        for (int v = 0; v < together; ++v) {
          const int c = begin + v;
          arguments.v[v] = s[m][c / 2][2 * h + c % 2];
          counted.v[v] = weights[c];
          if constexpr (is_radial(P)) {
            const T both = norm + norms[c], r = multiply_add(T(-2), arguments.v[v], both);
            const bool close = sets_apart(p) && r < kNear<T> * both;
            arguments.v[v] = close ? both : r;
            if (close) counted.v[v] = 0;
            near.add(m, h, c / 2, c % 2, close);
          }
        }
        const auto jet = profile < P, multiple ? 0 : 1, Math, One,
                   P == Profile::laplacian > (*q.constants, arguments, biases);
#pragma unroll
        for (int v = 0; v < together; ++v) {
          const int c = begin + v;
          const T k = jet.k.v[v] * counted.v[v];
          const T derived = multiple || q.kernel ? k : jet.k1.v[v] * counted.v[v];
          const T w = A::weight(derived * scale);
          k_sum += k;
          w_sum += w;
          s[m][c / 2][2 * h + c % 2] = w;
        }
      }
      totals.k[m][h] += (double)k_sum;
      totals.w[m][h] += (double)w_sum;
    }
  return near.template mark<Width>(q, row, column, first);
}

template <class A, bool Gaussian, int Width, int M, int N>
DECOCT_DEVICE bool weigh(const Problem<typename A::T>& p, const Pairs<typename A::T>& q,
                         typename A::T (&s)[M][N][4], int row, int column, int first, RowTotals<M>& totals) {
  return with_kernel<Gaussian>(p.kernel.profile, q.constants->scales, [&](auto constant, auto one) {
    constexpr Profile profile = decltype(constant)::value;
    constexpr bool single = decltype(one)::value;
    if constexpr (profile == Profile::laplacian)
      if (p.plan) return weigh_as<A, profile, single, true, Width>(p, q, s, row, column, first, totals);
    return weigh_as<A, profile, single, false, Width>(p, q, s, row, column, first, totals);
  });
}

}  // namespace decoct::cuda
