// From the scores x.y of a tile to weights, on registers: the profile, sums over rows, and the near pairs.
//
// Pairs whose squared distance is small against |x|^2 + |y|^2 lose their digits in |x|^2 - 2 x.y + |y|^2.
// They are marked, left out of the tile, and computed from differences by a whole warp each.
#pragma once
#include <type_traits>

#include "../kernel_profiles.h"
#include "reduce.cuh"
#include "tile.cuh"

namespace decoct::cuda {

struct Math {
  static DECOCT_DEVICE float exp2(float v) { return exp2_approximate(v); }
  static DECOCT_DEVICE double exp2(double v) { return ::exp2(v); }
  static DECOCT_DEVICE float sqrt(float v) { return ::sqrtf(v); }
  static DECOCT_DEVICE double sqrt(double v) { return ::sqrt(v); }
  static DECOCT_DEVICE float power(float v, float e) { return ::exp2f(e * ::log2f(v)); }
  static DECOCT_DEVICE double power(double v, double e) { return ::exp2(e * ::log2(v)); }
  template <class T>
  static DECOCT_DEVICE T inverse_or_zero(T d) {
    const T zero = d - d;  // NaN where d is not finite
    return d == zero ? zero : T(1) / d;
  }
};

template <class T>
constexpr T kNear = T(1.0 / 1024);

// One block of pairs: `rows` and `columns` of a segment, and what becomes of them.
template <class T>
struct Pairs {
  const Side<T>*rows, *columns;
  int64_t first_row, first_column;  // of the segment
  int row_begin, row_end, column_end;
  bool same;                             // rows and columns are one side: (i, i) is a point and itself
  bool gradient, kernel;                 // weights are wanted: of the derivative, or k itself
  double coefficient;                    // of the value
  T scale;                               // of weights and of row sums
  const ProfileConstants<T>* constants;  // in shared memory
  uint32_t* near_bits;                   // (tile rows, tile columns / 32)
  double* near_sums;                     // (tile rows): near pairs' share of sum_j b_j k_ij
  T* slab;                               // (tile rows, stride): what the task's rows add up to
  int64_t slab_stride;
};

template <class T>
DECOCT_DEVICE Pairs<T> make_pairs(const Problem<T>& p, const Task& task, const SegmentPlan& s) {
  Pairs<T> q{};
  const bool rows_x = task.flags & kRowsX, columns_x = task.flags & kColumnsX;
  q.rows = &side_of(p, rows_x);
  q.columns = &side_of(p, columns_x);
  q.first_row = first_row(s, rows_x);
  q.first_column = first_row(s, columns_x);
  q.row_begin = task.row_begin;
  q.row_end = task.row_end;
  q.column_end = task.col_end;
  q.same = rows_x == columns_x;
  double coefficient = p.coefficients ? p.coefficients[3 * task.segment + (!q.same ? 1 : rows_x ? 0 : 2)] : 1;
  if (p.kernel.profile == Profile::energy) coefficient *= p.states[task.segment].spread;
  q.coefficient = coefficient * (task.flags & kTwice ? 2 : 1);
  q.scale = (T)(coefficient * (q.same && p.coefficients ? 2 : 1));
  q.gradient = task.flags & kGradient;
  q.kernel = q.gradient && !p.coefficients;
  q.slab = p.slabs + (int64_t)task.slab * p.slab_stride;
  q.slab_stride = p.slab_stride;
  return q;
}

// Sums over a lane's columns, of each of its rows.
template <int M>
struct RowTotals {
  double k[M][2], w[M][2];
};

template <class T>
DECOCT_DEVICE void mark_near(const Pairs<T>& q, int row, int column, int width) {
  atomic_or(q.near_bits + row * (width / 32) + column / 32, 1u << column % 32);
}

// One tile: `row` and `column` are those of this warp within it, `first` the tile's first column. Scores
// become weights in place; returns whether this lane saw a near pair.
template <class A, Profile P, bool One, int Width, int M, int N>
DECOCT_DEVICE bool weigh_as(const Pairs<typename A::T>& q, typename A::T (&s)[M][N][4], int row, int column,
                            int first, RowTotals<M>& totals) {
  using T = typename A::T;
  const int g = lane_index() / 4, t = lane_index() % 4;
  bool any = false;
  T norms[N][2], weights[N][2];
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int j = first + column + n * 8 + 2 * t + e;
      const bool inside = j < q.column_end;
      norms[n][e] = inside ? q.columns->norms[q.first_column + j] : T(0);
      weights[n][e] = inside ? q.columns->weights[q.first_column + j] : T(0);
    }
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = q.row_begin + row + m * 16 + h * 8 + g;
      const bool inside = i < q.row_end;
      const T norm = inside ? q.rows->norms[q.first_row + i] : T(0);
      const T scale = inside ? q.rows->weights[q.first_row + i] * q.scale : T(0);
      T k_sum = 0, w_sum = 0;
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          T& score = s[m][n][2 * h + e];
          const int j = first + column + n * 8 + 2 * t + e;
          T argument = score, weight = weights[n][e];
          bool self = false;
          if constexpr (is_radial(P)) {
            const T both = norm + norms[n][e];
            argument = both - 2 * score;
            self = q.same && i == j;
            if (self) argument = norm - norm;
            if (!self && argument < kNear<T> * both) {
              argument = both;
              weight = 0;
              any = true;
              mark_near(q, row + m * 16 + h * 8 + g, column + n * 8 + 2 * t + e, Width);
            }
          }
          constexpr int order = P == Profile::gaussian && One ? 0 : 1;
          const Jet<T> jet = profile<P, order, Math>(*q.constants, argument);
          const T k = jet.k * weight;
          k_sum += k;
          T w = (order == 0 ? k * -q.constants->slope[0] : jet.k1 * weight) * scale;
          if (self) w = 0;
          w = A::weight(w);
          w_sum += w;
          score = q.kernel ? (weight != T(0) && inside ? A::weight(jet.k) : T(0)) : w;
        }
      totals.k[m][h] += (double)k_sum;
      totals.w[m][h] += (double)w_sum;
    }
  return any;
}

// use(profile as a constant), by a switch that all threads take alike.
template <bool WithGaussian, class Use>
DECOCT_DEVICE auto with_profile(Profile profile, Use use) {
  if constexpr (WithGaussian)
    if (profile == Profile::gaussian) return use(std::integral_constant<Profile, Profile::gaussian>{});
  switch (profile) {
    case Profile::laplacian:
      return use(std::integral_constant<Profile, Profile::laplacian>{});
    case Profile::energy:
      return use(std::integral_constant<Profile, Profile::energy>{});
    case Profile::inverse_multiquadric:
      return use(std::integral_constant<Profile, Profile::inverse_multiquadric>{});
    case Profile::rational_quadratic:
      return use(std::integral_constant<Profile, Profile::rational_quadratic>{});
    case Profile::polynomial:
      return use(std::integral_constant<Profile, Profile::polynomial>{});
    default:
      return use(std::integral_constant<Profile, Profile::linear>{});
  }
}

// use(profile, whether it has one scale): gaussians have kernels of their own, the others share one.
template <bool Gaussian, class Use>
DECOCT_DEVICE auto with_kernel(Profile profile, int scales, Use use) {
  if constexpr (Gaussian) {
    constexpr std::integral_constant<Profile, Profile::gaussian> gaussian{};
    return scales == 1 ? use(gaussian, std::true_type{}) : use(gaussian, std::false_type{});
  } else {
    return with_profile<false>(profile, [&](auto constant) { return use(constant, std::false_type{}); });
  }
}

template <class A, bool Gaussian, int Width, int M, int N>
DECOCT_DEVICE bool weigh(Profile profile, const Pairs<typename A::T>& q, typename A::T (&s)[M][N][4], int row,
                         int column, int first, RowTotals<M>& totals) {
  return with_kernel<Gaussian>(profile, q.constants->scales, [&](auto constant, auto one) {
    return weigh_as<A, decltype(constant)::value, decltype(one)::value, Width>(q, s, row, column, first,
                                                                               totals);
  });
}

template <int Order, class T>
DECOCT_DEVICE Jet<T> profile_of(Profile profile, const ProfileConstants<T>& c, T r) {
  return with_profile<true>(
      profile, [&](auto constant) { return decoct::profile<decltype(constant)::value, Order, Math>(c, r); });
}

// use(row in the tile, column of the segment) for every marked pair of a tile, by whole warps; unmarks them,
// or moves the marks to `kept` (kNearWords a row). A row belongs to one warp.
template <int Rows, int Width, class Use>
DECOCT_DEVICE void for_near(uint32_t* near_bits, uint32_t* kept, int first, Use use) {
  for (int row = warp_index(); row < Rows; row += kWarps)
    for (int word = 0; word < Width / 32; ++word) {
      uint32_t* bits = near_bits + row * (Width / 32) + word;
      uint32_t left = *bits;
      sync_warp();
      if (lane_index() == 0) {
        *bits = 0;
        if (kept) kept[row * kNearWords + word] = left;
      }
      for (; left; left &= left - 1) use(row, first + word * 32 + lowest_bit(left));
    }
}

// sum_d (p - q)^2, to all lanes.
template <class T>
DECOCT_DEVICE double squared_distance(const T* p, const T* q, int dim) {
  double sum = 0;
  for (int d = lane_index(); d < dim; d += 32) {
    const double difference = (double)p[d] - (double)q[d];
    sum += difference * difference;
  }
  return warp_sum(sum);
}

// A near pair from differences, computed by a whole warp: k, its weight in the row's sum, and the
// derivative's.
template <class T>
struct NearPair {
  const T *point, *other;
  T k, weight, change;
};

template <class T>
DECOCT_DEVICE NearPair<T> near_pair(const Problem<T>& p, const Pairs<T>& q, int row, int j) {
  const int64_t i = q.first_row + q.row_begin + row, column = q.first_column + j;
  NearPair<T> pair{q.rows->points + i * p.stride, q.columns->points + column * p.stride, 0, 0, 0};
  const T r = (T)squared_distance(pair.point, pair.other, p.dim);
  const Jet<T> jet = profile_of<1>(p.kernel.profile, *q.constants, r);
  pair.k = jet.k;
  pair.weight = q.columns->weights[column];
  pair.change = q.scale * q.rows->weights[i] * pair.weight * jet.k1;
  return pair;
}

// Its derivative to columns [begin, end) of the row's slab.
template <class T>
DECOCT_DEVICE void add_near_pair(const NearPair<T>& pair, T* slab, int begin, int end) {
  for (int d = begin + lane_index(); d < end; d += 32)
    slab[d] -= pair.change * (pair.point[d] - pair.other[d]);
}

// Sums of a lane's columns to sums of the tile's rows: lanes first, then the warps that share a row, in
// order. `shared` holds 2 x Warps x Rows doubles; afterwards (2, Rows) lie at its start.
template <int Rows, int Warps, int M>
DECOCT_DEVICE void collect_rows(const RowTotals<M>& totals, int row, int warp, double* shared) {
  const int g = lane_index() / 4;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      double k = totals.k[m][h], w = totals.w[m][h];
      for (int step = 1; step < 4; step *= 2) {
        k += shuffle_xor(k, step);
        w += shuffle_xor(w, step);
      }
      if (lane_index() % 4 != 0) continue;
      const int at = warp * 2 * Rows + row + m * 16 + h * 8 + g;
      shared[at] = k;
      shared[at + Rows] = w;
    }
  sync_block();
  for (int at = thread_index(); at < 2 * Rows; at += kThreads) {
    double total = shared[at];
    for (int other = 1; other < Warps; ++other) total += shared[other * 2 * Rows + at];
    shared[at] = total;
  }
  sync_block();
}

// The task's value and row sums from what collect_rows left. Row sums of weights paths go to `sums` too.
template <int Rows, class T>
DECOCT_DEVICE void finish_task(const Problem<T>& p, const Pairs<T>& q, const Task& task, const double* shared,
                               double* sums, double* partial) {
  double value = 0;
  const int row = thread_index();
  if (row < q.row_end - q.row_begin) {
    const double k = shared[row] + (q.near_sums ? q.near_sums[row] : 0.0);
    value = (double)q.rows->weights[q.first_row + q.row_begin + row] * k;
    if (sums) {
      sums[row * kRowSumKinds] = (double)q.scale * k;
      sums[row * kRowSumKinds + 1] = shared[Rows + row];
      sums[row * kRowSumKinds + 2] = 0;
    }
  }
  value = block_sum(value, partial);
  if (thread_index() == 0 && (task.flags & kCount)) p.partials[task.value] = q.coefficient * value;
}

}  // namespace decoct::cuda
