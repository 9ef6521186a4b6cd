// Value and gradient in one pass for 16 <= D <= 256: scores, weights and w p stay on chip.
//
//   operations   4 D and one exponential (or root) a pair; 3xTF32 takes three products for one
//   bytes        D / rows-of-a-block elements a pair from cache
//   bound        D = 64 in 3xTF32: A100 0.20, H100 0.64 Tpair/s, the products;
//                D = 16 in TF32: H100 3.9 Tpair/s, the exponentials
//
// A block keeps its rows in shared memory and runs along the columns, two tiles in flight. Two pairs of warps
// deal the rows and the columns of a tile among them: a warp's weights are then the left operand of its own
// second product, in the registers where they were made (arithmetic.cuh). The gradient sums of a warp's rows
// lie in its registers, at most 128 a thread. At the end the two warps that share rows add theirs up in
// order.
#pragma once
#include "weigh.cuh"

namespace decoct::cuda {

template <class A, int Width>
struct FusedTile {
  using Point = typename A::Point;
  static constexpr int kRows = kFusedRows, kColumns = fused_columns(Width);
  static constexpr int kWarpColumns = 2;  // warps along the columns, and as many along the rows
  static constexpr int kM = kRows / 2 / 16, kN = kColumns / 2 / 8;  // of a warp's scores
  static constexpr int kPitch = row_pitch<Point>(Width), kGradientPitch = row_pitch<float>(Width);
  static constexpr int kGroup = 4;  // column groups of the result at a time
};

template <class A, int Width>
constexpr int fused_shared() {
  using Tile = FusedTile<A, Width>;
  return (Tile::kRows + 2 * Tile::kColumns) * Tile::kPitch * (int)sizeof(typename Tile::Point) +
         Tile::kRows * Tile::kColumns / 8 + Tile::kRows * 8 + kWarps * 8 +
         (int)sizeof(ProfileConstants<float>) + 16 * 6;
}

// One column tile at a time from packed rows, the next in flight.
template <class A, int Width>
DECOCT_DEVICE void load_columns(const Problem<float>& p, const Pairs<float>& q, typename A::Point* tiles,
                                int index, int first) {
  using Tile = FusedTile<A, Width>;
  load_tile<Width, Tile::kColumns>(
      tiles + index % 2 * Tile::kColumns * Tile::kPitch, Tile::kPitch,
      (const typename A::Point*)q.columns->points + (q.first_column + first) * p.stride, p.stride,
      q.column_end - first, 0, p.stride);
}

// Every warp's gradient sums to the slab. `shared` has room for the rows; `row` and `part` say which are the
// warp's and whose share of the columns.
template <class A, int Width, int Groups, int M, int N>
DECOCT_DEVICE void store_gradient(const Pairs<float>& q, const float (&gradient)[Groups][M][N][4],
                                  int own_row, int own_part, bool touched, float* shared) {
  using Tile = FusedTile<A, Width>;
  static_assert(Tile::kRows * Tile::kGradientPitch * 4 <=
                2 * Tile::kColumns * Tile::kPitch * (int)sizeof(typename A::Point));
  const int g = lane_index() / 4, t = lane_index() % 4;
  for (int part = 0; part < Tile::kWarpColumns; ++part) {
    if (part == own_part) {
#pragma unroll
      for (int group = 0; group < Groups; ++group)
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
          for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const int row = own_row + m * 16 + e / 2 * 8 + g, d = (group * N + n) * 8 + 2 * t + e % 2;
              float& sum = shared[row * Tile::kGradientPitch + d];
              sum = (part == 0 ? 0 : sum) + gradient[group][m][n][e];
            }
    }
    sync_block();
  }
  for (int at = thread_index(); at < (q.row_end - q.row_begin) * (int)q.slab_stride; at += kThreads) {
    const int row = at / (int)q.slab_stride, d = at % (int)q.slab_stride;
    q.slab[at] = (touched ? q.slab[at] : 0) + shared[row * Tile::kGradientPitch + d];
  }
}

template <class A, int Width, bool Gaussian>
DECOCT_KERNEL fused_kernel(Problem<float> p, int first_task) {
  using Tile = FusedTile<A, Width>;
  using Point = typename A::Point;
  constexpr int groups = Width / 8 / Tile::kGroup;
  Shared shared;
  Point* rows = shared.take<Point>(Tile::kRows * Tile::kPitch);
  Point* tiles = shared.take<Point>(2 * Tile::kColumns * Tile::kPitch);
  uint32_t* near_bits = shared.take<uint32_t>(Tile::kRows * Tile::kColumns / 32);
  double* near_sums = shared.take<double>(Tile::kRows);
  double* partial = shared.take<double>(kWarps);
  auto* constants = shared.take<ProfileConstants<float>>(1);

  const Task task = p.tasks[first_task + block_index()];
  const Pairs<float> q = begin_pairs<Tile::kRows, Tile::kColumns>(p, task, constants, near_bits, near_sums);

  load_tile<Width, Tile::kRows>(rows, Tile::kPitch,
                                (const Point*)q.rows->points + (q.first_row + q.row_begin) * p.stride,
                                p.stride, q.row_end - q.row_begin, 0, p.stride);
  load_columns<A, Width>(p, q, tiles, 0, task.col_begin);
  commit_copies();
  const int depth = p.stride < Width ? p.stride : Width;
  const int part = warp_index() % Tile::kWarpColumns, own_column = part * Tile::kN * 8;
  const int own_row = warp_index() / Tile::kWarpColumns * Tile::kM * 16;
  RowTotals<Tile::kM> totals{};
  float gradient[groups][Tile::kM][Tile::kGroup][4] = {};
  bool touched = false;  // whether near pairs have begun this task's part of the slab
  for (int first = task.col_begin, index = 0; first < task.col_end; first += Tile::kColumns, ++index) {
    wait_copies<0>();
    sync_block();
    if (first + Tile::kColumns < task.col_end)
      load_columns<A, Width>(p, q, tiles, index + 1, first + Tile::kColumns);
    commit_copies();
    const Point* columns = tiles + (index % 2 * Tile::kColumns + own_column) * Tile::kPitch;
    float sums[Tile::kM][Tile::kN][4] = {};
    A::multiply_rows(sums, rows + own_row * Tile::kPitch, Tile::kPitch, columns, Tile::kPitch, depth);
    const bool near = weigh<A, Gaussian, Tile::kColumns>(p, q, sums, own_row, own_column, first, totals);
    if (sync_block_any(near)) {
      if (!touched && q.gradient) {
        for (int at = thread_index(); at < (q.row_end - q.row_begin) * (int)q.slab_stride; at += kThreads)
          q.slab[at] = 0;
        touched = true;
        sync_block();
      }
      for_near<Tile::kRows, Tile::kColumns>(near_bits, nullptr, first, [&](int row, int j) {
        const NearPair<float> pair = near_pair(p, q, row, j);
        if (lane_index() == 0) near_sums[row] += (double)pair.k * (double)pair.weight;
        if (q.gradient) add_near_pair(p, pair, q.slab + row * q.slab_stride, 0, p.dim);
      });
    }
    if (!q.gradient) continue;
#pragma unroll
    for (int group = 0; group < groups; ++group)
      if (group * Tile::kGroup * 8 < depth)
        A::multiply_weights(gradient[group], sums, columns + group * Tile::kGroup * 8, Tile::kPitch);
  }
  wait_copies<0>();
  sync_block();
  // Read again rather than kept in registers.
  const Task again = p.tasks[first_task + block_index()];
  Pairs<float> done = make_pairs(p, again);
  done.near_sums = near_sums;
  if (done.gradient) store_gradient<A, Width>(done, gradient, own_row, part, touched, (float*)tiles);
  double* row_sums = (double*)rows;  // these are no longer needed
  collect_rows<Tile::kRows, Tile::kWarpColumns>(totals, own_row, part, row_sums);
  finish_task<Tile::kRows>(p, done, again, row_sums, p.sums + (int64_t)again.slab * kRowSumKinds, partial);
}

}  // namespace decoct::cuda
