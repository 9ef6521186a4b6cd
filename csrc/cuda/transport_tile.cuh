// Sums over the rows and the columns of blocks of pairs, or the costs of their pairs, for any D
// (transport.cuh).
//
//   S_ij = 2^(F_i + G_j - rate c_ij),  R_i += b_j S_ij,  Q_j += a_i S_ij,  c = |p_i - q_j|^2 or |p_i - q_j|
//
//   operations   2 D and one exponential a pair (|x - y|: and a root); 3xTF32 takes three products for one
//   bytes        2 D (1 / 64 + 1 / 64) elements a pair between cache and chip; sums: 8 bytes a row or column
//   for
//                each task that has it
//   bound        D = 64 in 3xTF32: A100 0.41, H100 1.3 Tpair/s, the products;
//                D = 16 in TF32: A100 2.4, H100 3.9 Tpair/s, the exponentials
//
// Tiles and their steps are those of the score kernel. A block goes through a band of rows, row tile by row
// tile, so that sums over columns are made in one place, in order: in a slab in cache that no other block
// touches. Below kSmallDim distances are made by differences, a policy of products like the others.
#pragma once
#include "score.cuh"
#include "transport.cuh"

namespace decoct::cuda {

// |a - b|^2 where the others have a . b.
struct Differences {
  using T = float;
  using Point = float;

  template <int M, int N>
  static DECOCT_DEVICE void multiply_rows(T (&sums)[M][N][4], const T* a, int a_stride, const T* b,
                                          int b_stride, int depth) {
    const int g = lane_index() / 4, t = lane_index() % 4;
    for (int k = 0; k < depth; ++k) {
      T left[M][2], right[N][2];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) left[m][h] = a[(m * 16 + h * 8 + g) * a_stride + k];
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h) right[n][h] = b[(n * 8 + 2 * t + h) * b_stride + k];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const T difference = left[m][e / 2] - right[n][e % 2];
            sums[m][n][e] = multiply_add(difference, difference, sums[m][n][e]);
          }
    }
  }
};
template <class A>
constexpr bool kByDifferences = std::is_same_v<A, Differences>;

template <class A>
constexpr Shape transport_shape = sizeof(typename A::T) == 8 ? Shape::medium : Shape::square;

// Shared memory, in the order of the kernel's take() calls.
template <class A>
constexpr int transport_shared() {
  using Tile = ScoreTile<transport_shape<A>>;
  return kStages * score_stage<A, transport_shape<A>>() * (int)sizeof(typename A::Point) +
         2 * Tile::kWarpColumns * Tile::kRows * 8 +
         Tile::kWarpRows * Tile::kColumns * (int)sizeof(typename A::T) + 16 * 3;
}

// What the pairs of a term are summed with.
template <class T>
struct TransportPairs {
  TermSide<T> rows, columns;
  int row_end, column_end;  // of the task
  bool same, squared;
  T rate, shift;
};

// The distance of a pair from its score, or from their difference where the score has lost its digits: by the
// lane that has it, for such pairs are few.
template <class A>
DECOCT_DEVICE typename A::T squared_of(const Problem<typename A::T>& p,
                                       const TransportPairs<typename A::T>& q, typename A::T score,
                                       typename A::T both, int i, int j) {
  using T = typename A::T;
  if (kByDifferences<A>) return score;
  const T r = multiply_add(T(-2), score, both);
  if (q.same && i == j) return 0;
  if (!(r < kNear<T> * both)) return r;
  const PairRows<T> pair{q.rows.side->points, q.columns.side->points, (q.rows.first + i) * p.stride,
                         (q.columns.first + j) * p.stride};
  T sum = 0;
#pragma unroll 1
  for (int d = 0; d < p.dim; ++d) {
    const T difference = pair.difference(p, d);
    sum += difference * difference;
  }
  return sum;
}

// One tile: `row` is this warp's first within its segment, `column` likewise.
template <class A, bool Squared, int M, int N>
DECOCT_DEVICE void sum_pairs(const Problem<typename A::T>& p, const TransportPairs<typename A::T>& q,
                             const typename A::T (&s)[M][N][4], int row, int column, RowTotals<M>& totals,
                             typename A::T (&column_sums)[2 * N]) {
  using T = typename A::T;
  constexpr bool folded = Squared && !kByDifferences<A>;  // norms are added to the biases
  const int first_i = row + lane_index() / 4, first_j = column + lane_index() % 4 * 2;
  const T *row_norms = q.rows.side->norms + q.rows.first, *norms = q.columns.side->norms + q.columns.first;
  T biases[2 * N], weights[2 * N], others[2 * N];
  // No pair with a row or column past the end counts for anything.
  const auto load_biases = [&](const T* from) {
#pragma unroll
    for (int c = 0; c < 2 * N; ++c) {
      const int j = first_j + c / 2 * 8 + c % 2;
      biases[c] = j < q.column_end ? from[j] - (folded ? q.rate * norms[j] : T(0)) : -(T)INFINITY;
    }
  };
#pragma unroll
  for (int c = 0; c < 2 * N; ++c) {
    const int j = first_j + c / 2 * 8 + c % 2;
    const bool inside = j < q.column_end;
    weights[c] = inside ? q.columns.side->weights[q.columns.first + j] : T(0);
    others[c] = !folded && !kByDifferences<A> && inside ? norms[j] : T(0);
    column_sums[c] = 0;
  }
  if (!q.rows.labels) load_biases(q.columns.column_bias);
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = first_i + m * 16 + h * 8;
      const bool inside = i < q.row_end;
      const T norm = inside && !kByDifferences<A> ? row_norms[i] : T(0);
      const T weight = inside ? q.rows.side->weights[q.rows.first + i] : T(0);
      const T own = inside ? q.rows.row_bias[i] + q.shift - (folded ? q.rate * norm : T(0)) : -(T)INFINITY;
      if (q.rows.labels && inside)
        load_biases(q.columns.column_bias + q.rows.labels[i] * q.columns.side->bias_pitch);
      else if (q.rows.labels)
        load_biases(q.columns.column_bias);
      T sum = 0;
#pragma unroll
      for (int c = 0; c < 2 * N; ++c) {
        const T score = s[m][c / 2][2 * h + c % 2], bias = own + biases[c];
        T k;
        if constexpr (folded) {
          k = Math::exp2_of_any(multiply_add(2 * q.rate, score, bias));
        } else if constexpr (Squared) {
          k = Math::exp2_of_any(multiply_add(-q.rate, score, bias));
        } else {
          const int j = first_j + c / 2 * 8 + c % 2;
          // Of pairs past the end any distance will do.
          const T both = norm + others[c];
          const T r = inside && j < q.column_end ? squared_of<A>(p, q, score, both, i, j) : T(0);
          k = Math::exp2_of_any(multiply_add(-q.rate, Math::sqrt(r), bias));
        }
        sum += k * weights[c];
        column_sums[c] += k * weight;
      }
      totals.k[m][h] += (double)sum;
    }
}

// The tile's costs to memory.
template <class A, int M, int N>
DECOCT_DEVICE void keep_costs(const Problem<typename A::T>& p, const Transport<typename A::T>& t,
                              const TransportPairs<typename A::T>& q, const typename A::T (&s)[M][N][4],
                              int row, int column, typename A::T unit, typename A::T* kept, int pitch) {
  using T = typename A::T;
  const int first_i = row + lane_index() / 4, first_j = column + lane_index() % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = first_i + m * 16 + e / 2 * 8, j = first_j + n * 8 + e % 2;
        if (i >= q.row_end || j >= q.column_end) continue;
        const T both = q.rows.side->norms[q.rows.first + i] + q.columns.side->norms[q.columns.first + j];
        const T r = squared_of<A>(p, q, s[m][n][e], both, i, j);
        T cost = unit * (q.squared ? r : Math::sqrt(r));
        if (q.rows.labels) cost += (T)label_cost(t, q.rows.labels[i], q.columns.labels[j]);
        kept[(int64_t)i * pitch + j] = cost;
      }
}

// Adds a tile's sums over columns to the task's slab: lanes first, then the warps that share columns, in
// order.
template <class T, int WarpRows, int Columns, int Count>
DECOCT_DEVICE void add_column_sums(const T (&sums)[Count], int column, int warp_row, T* parts, double* slab,
                                   int columns, bool first) {
#pragma unroll
  for (int c = 0; c < Count; ++c) {
    T sum = sums[c];
    for (int step = 4; step < 32; step *= 2) sum += shuffle_xor(sum, step);
    if (lane_index() < 4) parts[warp_row * Columns + column + c / 2 * 8 + lane_index() * 2 + c % 2] = sum;
  }
  sync_block();
  const int j = thread_index();
  if (j >= Columns || j >= columns) return;
  double total = first ? 0 : slab[j];
  for (int w = 0; w < WarpRows; ++w) total += (double)parts[w * Columns + j];
  slab[j] = total;
}

template <class A>
DECOCT_KERNEL transport_kernel(Problem<typename A::T> p, Transport<typename A::T> t, int first_task,
                               bool keep) {
  using T = typename A::T;
  using Point = typename A::Point;
  constexpr Shape shape = transport_shape<A>;
  using Tile = ScoreTile<shape>;
  Shared shared;
  Point* stages = shared.take<Point>(kStages * score_stage<A, shape>());
  double* row_sums = shared.take<double>(2 * Tile::kWarpColumns * Tile::kRows);
  T* column_parts = shared.take<T>(Tile::kWarpRows * Tile::kColumns);

  const TransportTask task = t.tasks[first_task + block_index()];
  const Term term = t.terms[task.term];
  const TransportState state = state_of(t, term);
  if (state.pass == Pass::done) return;
  TransportPairs<T> q;
  q.rows = side_of_term(p, t, term, true, state.parity);
  q.columns = side_of_term(p, t, term, false, state.parity);
  q.row_end = task.row_end;
  q.column_end = task.col_end;
  q.same = term.rows_x == term.columns_x;
  q.squared = t.squared;
  const double unit = cost_unit(t, p.states[term.segment].spread);
  q.rate = (T)(unit * kLog2e / state.eps);
  q.shift = (T)(state.shift * kLog2e / state.eps);

  const int steps = (p.stride + kStep<Point> - 1) / kStep<Point>;
  const int column_tiles = (task.col_end - task.col_begin + Tile::kColumns - 1) / Tile::kColumns;
  const int row_tiles = (task.row_end - task.row_begin + Tile::kRows - 1) / Tile::kRows;
  const int total = row_tiles * column_tiles * steps;
  constexpr int pitch = row_pitch<Point>(kStep<Point>);
  const auto row_of = [&](int tile) { return task.row_begin + tile / column_tiles * Tile::kRows; };
  const auto column_of = [&](int tile) { return task.col_begin + tile % column_tiles * Tile::kColumns; };
  const auto load = [&](int at) {
    const int i = row_of(at / steps), j = column_of(at / steps), d = at % steps * kStep<Point>;
    Point* stage = stages + at % kStages * score_stage<A, shape>();
    load_tile<kStep<Point>, Tile::kRows>(stage, pitch,
                                         (const Point*)q.rows.side->points + (q.rows.first + i) * p.stride,
                                         p.stride, task.row_end - i, d, p.stride);
    load_tile<kStep<Point>, Tile::kColumns>(
        stage + Tile::kRows * pitch, pitch,
        (const Point*)q.columns.side->points + (q.columns.first + j) * p.stride, p.stride, task.col_end - j,
        d, p.stride);
  };
  RowTotals<Tile::kM> totals{};
  T sums[Tile::kM][Tile::kN][4] = {};
  for (int at = 0; at < kStages - 1; ++at) {
    if (at < total) load(at);
    commit_copies();
  }
  for (int at = 0; at < total; ++at) {
    wait_copies<kStages - 2>();
    sync_block();
    if (at + kStages - 1 < total) load(at + kStages - 1);
    commit_copies();
    const Point* stage = stages + at % kStages * score_stage<A, shape>();
    A::multiply_rows(sums, stage + Tile::row() * pitch, pitch, stage + (Tile::kRows + Tile::column()) * pitch,
                     pitch, kByDifferences<A> ? p.dim : kStep<Point>);
    if (at % steps != steps - 1) continue;

    const int tile = at / steps, i = row_of(tile), j = column_of(tile);
    if (keep) {
      keep_costs<A>(p, t, q, sums, i + Tile::row(), j + Tile::column(), (T)unit, t.kept + term.kept,
                    cost_pitch(term.columns));
      clear(sums);
      continue;
    }
    T column_sums[2 * Tile::kN];
    if (q.squared)
      sum_pairs<A, true>(p, q, sums, i + Tile::row(), j + Tile::column(), totals, column_sums);
    else
      sum_pairs<A, false>(p, q, sums, i + Tile::row(), j + Tile::column(), totals, column_sums);
    clear(sums);
    if (task.column_slab >= 0)
      add_column_sums<T, Tile::kWarpRows, Tile::kColumns>(
          column_sums, Tile::column(), warp_index() / Tile::kWarpColumns, column_parts,
          t.sums + term.column_sums + (int64_t)task.column_slab * term.columns + j, task.col_end - j,
          i == task.row_begin);
    if (tile % column_tiles != column_tiles - 1) continue;
    collect_rows<Tile::kRows, Tile::kWarpColumns>(totals, Tile::row(), warp_index() % Tile::kWarpColumns,
                                                  row_sums);
    if (thread_index() < Tile::kRows && i + thread_index() < task.row_end)
      t.sums[term.row_sums + (int64_t)task.row_slab * term.rows + i + thread_index()] =
          row_sums[thread_index()];
    totals = {};
  }
  wait_copies<0>();
}

// A launch of the tasks [first, first + count) of a pass; `keep`: those that keep costs.
template <class T>
struct TransportLaunch {
  const Problem<T>& problem;
  const Transport<T>& transport;
  int32_t first, count;
  bool keep;
  void* stream;
};

template <class A>
void launch_transport(const TransportLaunch<typename A::T>& l) {
  launch(transport_kernel<A>, {l.count, kThreads, transport_shared<A>(), l.stream}, l.problem, l.transport,
         l.first, l.keep);
}

}  // namespace decoct::cuda
