// Weights of Hessian-vector products. With q = a b, tangents u, v of the points and da, db of the weights,
//   dr_ij = 2 (x_i - y_j) . (u_i - v_j),   change_ij = dq_ij k' + q_ij k'' dr_ij,   base_ij = q_ij k'
// (for kernels of z = x . y: dz_ij = u_i . y_j + x_i . v_j). A product kernel then adds up
// change_ij y_j + base_ij v_j.
//
//   operations   6 D here, 4 D in the product, one exponential (or root) a pair
//   bytes        2 D (1 / 32 + 1 / 64) elements a pair from cache, 16 for two weights out and in
//   bound        the products, of both kernels: at D = 512 in 3xTF32 A100 0.010, H100 0.032 Tpair/s
//
// The tile and the loop are those of the score kernel, with four operands a step instead of two, two steps in
// flight. Tangents of weights alone need the points' product only.
#pragma once
#include "score.cuh"

namespace decoct::cuda {

constexpr int kHvpStages = 2;

template <class A, Shape S>
constexpr int hvp_stage() {
  return 2 * score_stage<A, S>();
}
template <class A, Shape S>
constexpr int hvp_shared() {
  return score_shared<A, S>() +
         (kHvpStages * hvp_stage<A, S>() - kStages * score_stage<A, S>()) * (int)sizeof(typename A::Point);
}

// Below kSmallDim: squared distances and half of their change, by differences.
template <class T, int M, int N>
DECOCT_DEVICE void take_differences(const Problem<T>& p, const Pairs<T>& q, T (&s)[M][N][4],
                                    T (&change)[M][N][4], int row, int column) {
  const int g = lane_index() / 4, t = lane_index() % 4;
  clear(s);
  clear(change);
  for (int d = 0; d < p.dim; ++d)
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int i = q.row_begin + row + m * 16 + e / 2 * 8 + g, j = column + n * 8 + 2 * t + e % 2;
          if (i >= q.row_end || j >= q.column_end) continue;
          const int64_t at = (q.first_row + i) * p.stride, other = (q.first_column + j) * p.stride;
          const T difference = PairRows<T>{q.rows->points, q.columns->points, at, other}.difference(p, d);
          s[m][n][e] += difference * difference;
          change[m][n][e] +=
              difference * PairRows<T>{q.rows->tangents, q.columns->tangents, at, other}.difference(p, d);
        }
}

// What a pair needs of each of its points; past the last one zeros, and a plan's lowest bias.
template <class T>
struct TangentPoint {
  T norm, dot, weight, change, bias;  // change: the tangent of the weight
};
template <class T>
DECOCT_DEVICE TangentPoint<T> load_point(const Side<T>& side, const T* bias, int64_t at, bool inside) {
  if (!inside) return {0, 0, 0, 0, kNothing<T>};
  return {side.norms[at], side.dots[at], side.weights[at], side.tangent_weights[at], bias ? bias[at] : T(0)};
}

// Sums over the columns of a row: of both weights, and of the derivative by the row's weight.
template <class T>
struct TangentSums {
  T change, base, weight;
};

// `argument` is d2 (or x.y), `along` its change. `change` and `base` receive the weights of y and of v.
template <class A, Profile P, class T>
DECOCT_DEVICE void weigh_tangent(const Problem<T>& p, const Pairs<T>& q, const TangentPoint<T>& x,
                                 const TangentPoint<T>& y, T argument, T along, T& change, T& base,
                                 TangentSums<T>& sums) {
  const T bias = may_be_plan(P) ? (x.bias + y.bias) * (T)p.bias_unit : T(0);
  const Jet<T> jet = profile<P, 2, Math, false, may_be_plan(P)>(*q.constants, argument, bias);
  const T pair = y.weight * x.weight;
  const T w = ((y.weight * x.change + y.change * x.weight) * jet.k1 + pair * jet.k2 * along) * q.scale;
  const T w_base = pair * jet.k1 * (q.scale * q.constants->turning);
  change = A::weight(w);
  base = A::weight(w_base);
  sums.change += change;
  sums.base += base;
  sums.weight += y.change * jet.k + y.weight * jet.k1 * along;
}

// `change` holds x.v + u.y and receives the weights of v; `s` holds x.y and receives those of y. With
// `differences` they hold d2 and half of its change. totals.w sums the former, `bases` the latter.
template <class A, Profile P, int Width, int M, int N>
DECOCT_DEVICE bool weigh_tangents(const Problem<typename A::T>& p, const Pairs<typename A::T>& q,
                                  bool differences, typename A::T (&s)[M][N][4],
                                  typename A::T (&change)[M][N][4], int row, int column, int first,
                                  RowTotals<M>& totals, RowTotals<M>& bases) {
  using T = typename A::T;
  const int g = lane_index() / 4, t = lane_index() % 4;
  NearMask<M, N> near;
  if constexpr (is_radial(P))
    exclude_self(q, s, row, first + column, (T)(differences ? -INFINITY : INFINITY));
  TangentPoint<T> points[M][2];
  TangentSums<T> sums[M][2] = {};
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = q.row_begin + row + m * 16 + h * 8 + g;
      points[m][h] =
          load_point(*q.rows, p.plan ? q.rows->row_bias[q.same] : nullptr, q.first_row + i, i < q.row_end);
    }
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int j = first + column + n * 8 + 2 * t + e;
      const bool there = j < q.column_end;
      const TangentPoint<T> other = load_point(*q.columns, p.plan ? q.columns->column_bias[q.same] : nullptr,
                                               q.first_column + j, there);
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int i = q.row_begin + row + m * 16 + h * 8 + g;
          const TangentPoint<T>& point = points[m][h];
          TangentPoint<T> counted = other;
          T argument = s[m][n][2 * h + e], along = change[m][n][2 * h + e];
          if constexpr (is_radial(P)) {
            const T both = point.norm + other.norm;
            if (!differences) {
              argument = both - 2 * argument;
              along = point.dot + other.dot - along;
            }
            along *= 2;
            const bool close = there && i < q.row_end && argument < kNear<T> * both;
            if (close) {
              argument = both;
              counted.weight = counted.change = 0;
            }
            near.add(m, h, n, e, close);
          }
          if (!p.moving) along = 0;
          weigh_tangent<A, P>(p, q, point, counted, argument, along, s[m][n][2 * h + e],
                              change[m][n][2 * h + e], sums[m][h]);
        }
    }
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      totals.k[m][h] += (double)sums[m][h].weight;
      totals.w[m][h] += (double)sums[m][h].change;
      bases.w[m][h] += (double)sums[m][h].base;
    }
  return near.template mark<Width>(q, row, column, first);
}

// A near pair from differences, computed by a whole warp: its part of the row's derivative by its weight, and
// the weights of the differences of points and of tangents.
template <class T>
struct NearTangent {
  PairRows<T> points, tangents;
  double weight, change, base;
};

template <class T>
DECOCT_DEVICE NearTangent<T> near_tangent(const Problem<T>& p, const Pairs<T>& q, int row, int j) {
  const int64_t i = q.first_row + q.row_begin + row, column = q.first_column + j;
  const int64_t at = i * p.stride, other = column * p.stride;
  NearTangent<T> pair{{q.rows->points, q.columns->points, at, other},
                      {q.rows->tangents, q.columns->tangents, at, other},
                      0,
                      0,
                      0};
  double along = 0;
  for (int d = lane_index(); d < p.dim; d += 32)
    along += (double)pair.points.difference(p, d) * (double)pair.tangents.difference(p, d);
  along = p.moving ? 2 * warp_sum(along) : 0.0;
  const T r = (T)squared_distance(p, pair.points);
  const Jet<T> jet = profile_of<2>(p.kernel.profile, *q.constants, r, bias_of(p, q, i, column));
  const double a = (double)q.rows->weights[i], da = (double)q.rows->tangent_weights[i];
  const double b = (double)q.columns->weights[column], db = (double)q.columns->tangent_weights[column];
  pair.weight = db * (double)jet.k + b * (double)jet.k1 * along;
  pair.change = (double)q.scale * ((da * b + a * db) * (double)jet.k1 + a * b * (double)jet.k2 * along);
  pair.base = p.moving ? (double)q.scale * a * b * (double)jet.k1 * (double)q.constants->turning : 0.0;
  return pair;
}

template <class T>
DECOCT_DEVICE void add_near_tangent(const Problem<T>& p, const NearTangent<T>& pair, T* slab, int begin,
                                    int end) {
  for (int d = begin + lane_index(); d < end; d += 32)
    slab[d] -= (T)(pair.change * (double)pair.points.difference(p, d) +
                   pair.base * (double)pair.tangents.difference(p, d));
}

template <class A, Shape S>
struct HvpSteps {
  using Point = typename A::Point;
  const Problem<typename A::T>& p;
  const Pairs<typename A::T>& q;
  Point* stages;
  int column_begin, steps;

  DECOCT_DEVICE void load(int at) const {
    using Tile = ScoreTile<S>;
    constexpr int pitch = row_pitch<Point>(kStep<Point>);
    const int first = column_begin + at / steps * Tile::kColumns, d = at % steps * kStep<Point>;
    Point* stage = stages + at % kHvpStages * hvp_stage<A, S>();
    const int64_t row_at = (q.first_row + q.row_begin) * p.stride;
    const int64_t column_at = (q.first_column + first) * p.stride;
    const auto load_both = [&](Point* to, const void* row_points, const void* column_points) {
      load_tile<kStep<Point>, Tile::kRows>(to, pitch, (const Point*)row_points + row_at, p.stride,
                                           q.row_end - q.row_begin, d, p.stride);
      load_tile<kStep<Point>, Tile::kColumns>(to + Tile::kRows * pitch, pitch,
                                              (const Point*)column_points + column_at, p.stride,
                                              q.column_end - first, d, p.stride);
    };
    load_both(stage, q.rows->points, q.columns->points);
    if (p.moving) load_both(stage + score_stage<A, S>(), q.rows->tangents, q.columns->tangents);
  }
};

template <class A, Shape S>
DECOCT_KERNEL hvp_kernel(Problem<typename A::T> p, int first_task) {
  using T = typename A::T;
  using Point = typename A::Point;
  using Tile = ScoreTile<S>;
  Shared shared;
  Point* stages = shared.take<Point>(kHvpStages * hvp_stage<A, S>());
  uint32_t* near_bits = shared.take<uint32_t>(Tile::kRows * Tile::kColumns / 32);
  double* near_sums = shared.take<double>(Tile::kRows);
  double* row_sums = shared.take<double>(2 * Tile::kWarpColumns * Tile::kRows);
  auto* constants = shared.take<ProfileConstants<T>>(1);

  const Task task = p.tasks[first_task + block_index()];
  const Pairs<T> q = begin_pairs<Tile::kRows, Tile::kColumns>(p, task, constants, near_bits, near_sums);

  const TaskScratch<A> own = scratch_of<A, S>(p, block_index());
  uint32_t near_tiles = 0;
  const int steps = (p.stride + kStep<Point> - 1) / kStep<Point>;
  const int total = (task.col_end - task.col_begin + Tile::kColumns - 1) / Tile::kColumns * steps;
  const HvpSteps<A, S> source{p, q, stages, task.col_begin, steps};
  RowTotals<Tile::kM> totals{}, bases{};
  T sums[Tile::kM][Tile::kN][4] = {}, change[Tile::kM][Tile::kN][4] = {};
  source.load(0);
  commit_copies();
  for (int at = 0; at < total; ++at) {
    wait_copies<0>();
    sync_block();
    if (at + 1 < total) source.load(at + 1);
    commit_copies();
    constexpr int pitch = row_pitch<Point>(kStep<Point>);
    const Point* stage = stages + at % kHvpStages * hvp_stage<A, S>();
    const Point *x = stage + Tile::row() * pitch, *y = stage + (Tile::kRows + Tile::column()) * pitch;
    A::multiply_rows(sums, x, pitch, y, pitch, kStep<Point>);
    if (p.moving) {
      constexpr int tangents = score_stage<A, S>();
      A::multiply_rows(change, x, pitch, y + tangents, pitch, kStep<Point>);
      A::multiply_rows(change, x + tangents, pitch, y, pitch, kStep<Point>);
    }
    if (at % steps != steps - 1) continue;

    const int first = task.col_begin + at / steps * Tile::kColumns;
    const bool differences = p.dim < kSmallDim && is_radial(p.kernel.profile);
    if (differences) take_differences(p, q, sums, change, Tile::row(), first + Tile::column());
    const bool near = with_profile<true>(p.kernel.profile, [&](auto constant) {
      return weigh_tangents<A, decltype(constant)::value, Tile::kColumns>(
          p, q, differences, sums, change, Tile::row(), Tile::column(), first, totals, bases);
    });
    const int at_column = first - task.col_begin;
    Point* tile_weights = own.weights + at_column;
    store_weights<A>(tile_weights, Tile::row(), Tile::column(), sums);
    if (p.moving) store_weights<A>(tile_weights + weight_elements(S), Tile::row(), Tile::column(), change);
    if (sync_block_any(near)) {
      near_tiles |= 1u << at_column / Tile::kColumns;
      for_near<Tile::kRows, Tile::kColumns>(near_bits, own.near + at_column / 32, first, [&](int row, int j) {
        const double weight = near_tangent(p, q, row, j).weight;
        if (lane_index() == 0) near_sums[row] += weight;
      });
    }
    clear(sums);
    clear(change);
  }
  wait_copies<0>();
  sync_block();
  if (thread_index() == 0) *own.near_tiles = near_tiles;
  const auto store = [&](int kind_of_k, int kind_of_w) {
    const int row = thread_index();
    if (row < q.row_end - q.row_begin) {
      if (kind_of_k >= 0)
        own.sums[row * kRowSumKinds + kind_of_k] = (double)q.scale * (row_sums[row] + near_sums[row]);
      own.sums[row * kRowSumKinds + kind_of_w] = row_sums[Tile::kRows + row];
    }
    sync_block();
  };
  collect_rows<Tile::kRows, Tile::kWarpColumns>(totals, Tile::row(), warp_index() % Tile::kWarpColumns,
                                                row_sums);
  store(0, 1);
  collect_rows<Tile::kRows, Tile::kWarpColumns>(bases, Tile::row(), warp_index() % Tile::kWarpColumns,
                                                row_sums);
  store(-1, 2);
}

}  // namespace decoct::cuda
