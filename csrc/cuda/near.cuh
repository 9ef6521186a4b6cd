// Pairs whose squared distance is small against |x|^2 + |y|^2 lose their digits in |x|^2 - 2 x.y + |y|^2.
// They are marked, left out of the tile, and computed from differences by a whole warp each.
#pragma once
#include "pairs.cuh"

namespace decoct::cuda {

template <class T>
constexpr T kNear = T(1.0 / 1024);

// A point and itself: k(0), which a tile leaves to the start of its task (begin_pairs), and no derivative.
// On the diagonal of a tile `far`, which makes the pair near, stands for its score.
template <class T, int M, int N>
DECOCT_DEVICE void exclude_self(const Pairs<T>& q, T (&s)[M][N][4], int row, int column, T far) {
  const int first = q.row_begin + row - column;  // of this warp's rows, counted from its columns
  if (!q.same || first >= N * 8 || first <= -M * 16) return;
  const int from = first + lane_index() / 4 - lane_index() % 4 * 2;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (from + m * 16 + e / 2 * 8 == n * 8 + e % 2) s[m][n][e] = far;
}

// Which of a lane's pairs are near: a bit each, so that the loop over them has no branch.
template <int M, int N>
struct NearMask {
  static_assert(M * N <= 8);
  uint32_t bits = 0;

  DECOCT_DEVICE void add(int m, int h, int n, int e, bool near) {
    if (near) bits |= 1u << (((m * 2 + h) * N + n) * 2 + e);
  }
  // Marks them in shared memory, without those of a point and itself; returns whether there is any.
  template <int Width, class T>
  DECOCT_DEVICE bool mark(const Pairs<T>& q, int row, int column, int first) const {
    bool any = false;
    for (uint32_t left = bits; left; left &= left - 1) {
      const int bit = lowest_bit(left), m = bit / (4 * N), h = bit / (2 * N) % 2, n = bit / 2 % N;
      const int i = row + m * 16 + h * 8 + lane_index() / 4;
      const int j = column + n * 8 + lane_index() % 4 * 2 + bit % 2;
      if (q.same && q.row_begin + i == first + j) continue;
      atomic_or(q.near_bits + i * (Width / 32) + j / 32, 1u << j % 32);
      any = true;
    }
    return any;
  }
};

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

// The packed rows of a pair, by where they begin.
template <class T>
struct PairRows {
  const void *points, *others;
  int64_t point, other;

  DECOCT_DEVICE T difference(const Problem<T>& p, int d) const {
    return read_packed(p, points, point + d) - read_packed(p, others, other + d);
  }
};

// sum_d (p - q)^2, to all lanes.
template <class T>
DECOCT_DEVICE double squared_distance(const Problem<T>& p, const PairRows<T>& rows) {
  double sum = 0;
  for (int d = lane_index(); d < p.dim; d += 32) {
    const double difference = (double)rows.difference(p, d);
    sum += difference * difference;
  }
  return warp_sum(sum);
}

// A near pair from differences, computed by a whole warp: k, its weight in the row's sum, and the
// derivative's.
template <class T>
struct NearPair {
  PairRows<T> rows;
  T k, weight, change;
};

template <class T>
DECOCT_DEVICE NearPair<T> near_pair(const Problem<T>& p, const Pairs<T>& q, int row, int j) {
  const int64_t i = q.first_row + q.row_begin + row, column = q.first_column + j;
  NearPair<T> pair{{q.rows->points, q.columns->points, i * p.stride, column * p.stride}, 0, 0, 0};
  const Jet<T> jet = profile_of<1>(p.kernel.profile, *q.constants, (T)squared_distance(p, pair.rows),
                                   bias_of(p, q, i, column));
  pair.k = jet.k;
  pair.weight = q.columns->weights[column];
  pair.change = q.scale * q.rows->weights[i] * pair.weight * jet.k1;
  return pair;
}

// Its derivative to columns [begin, end) of the row's slab.
template <class T>
DECOCT_DEVICE void add_near_pair(const Problem<T>& p, const NearPair<T>& pair, T* slab, int begin, int end) {
  for (int d = begin + lane_index(); d < end; d += 32) slab[d] -= pair.change * pair.rows.difference(p, d);
}

}  // namespace decoct::cuda
