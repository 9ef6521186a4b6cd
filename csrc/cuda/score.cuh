// Scores, weights and sums of blocks of pairs, for any D: s_ij = x_i . y_j, w_ij = c a_i b_j k'(d2_ij).
//
//   operations   2 D and one exponential (or root) a pair; 3xTF32 takes three products for one
//   bytes        2 D (1 / columns + 1 / rows) elements a pair between cache and chip, one more for a weight
//   bound        D = 512 in 3xTF32: A100 0.051, H100 0.16 Tpair/s, the products;
//                D = 16: A100 2.4, H100 3.9 Tpair/s, the exponentials
//
// A block owns one row tile and runs along its columns. Both operands pass through shared memory in steps of
// 128 bytes a row, three steps in flight across tile borders, so that the profile of one tile overlaps the
// loads of the next. 64 x 64: four warps of 32 x 32, each word from shared memory serves 32 products, and 128
// threads with some 55 KiB leave room for several blocks a multiprocessor. 16 x 128 for segments of few rows,
// where a square tile would be mostly padding, and 32 x 64 in float64, of which a lane can keep half as much.
#pragma once
#include "weigh.cuh"

namespace decoct::cuda {

template <Shape S>
struct ScoreTile {
  static constexpr int kRows = tile_rows(S), kColumns = tile_columns(S);
  static constexpr int kWarpRows = S == Shape::narrow ? 1 : 2;  // warps along the rows
  static constexpr int kWarpColumns = kWarps / kWarpRows;
  static constexpr int kM = kRows / kWarpRows / 16, kN = kColumns / kWarpColumns / 8;

  static DECOCT_DEVICE int row() { return warp_index() / kWarpColumns * kM * 16; }
  static DECOCT_DEVICE int column() { return warp_index() % kWarpColumns * kN * 8; }

  // use(row, column, sum) for each of the thread's.
  template <class T, class Use>
  static DECOCT_DEVICE void each(const T (&sums)[kM][kN][4], Use use) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kN; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          use(row() + m * 16 + e / 2 * 8 + g, column() + n * 8 + 2 * t + e % 2, sums[m][n][e]);
  }
};

// Elements of one step of k.
template <class A, Shape S>
constexpr int score_stage() {
  using Point = typename A::Point;
  return (ScoreTile<S>::kRows + ScoreTile<S>::kColumns) * row_pitch<Point>(kStep<Point>);
}

// Shared memory, in the order of the kernel's take() calls.
template <class A, Shape S>
constexpr int score_shared() {
  using Tile = ScoreTile<S>;
  return kStages * score_stage<A, S>() * (int)sizeof(typename A::Point) + Tile::kRows * Tile::kColumns / 8 +
         Tile::kRows * 8 + 2 * Tile::kWarpColumns * Tile::kRows * 8 + kWarps * 8 +
         (int)sizeof(ProfileConstants<typename A::T>) + 16 * 6;
}

// Steps of k of successive column tiles, as one sequence.
template <class A, Shape S>
struct ScoreSteps {
  using Point = typename A::Point;
  const Problem<typename A::T>& p;
  const Pairs<typename A::T>& q;
  const Point *row_points, *column_points;
  Point* stages;
  int column_begin, steps;  // steps: of one tile

  DECOCT_DEVICE void load(int at) const {
    using Tile = ScoreTile<S>;
    const int first = column_begin + at / steps * Tile::kColumns, d = at % steps * kStep<Point>;
    Point* stage = stages + at % kStages * score_stage<A, S>();
    constexpr int pitch = row_pitch<Point>(kStep<Point>);
    load_tile<kStep<Point>, Tile::kRows>(stage, pitch, row_points, p.stride, q.row_end - q.row_begin, d,
                                         p.stride);
    load_tile<kStep<Point>, Tile::kColumns>(stage + Tile::kRows * pitch, pitch,
                                            column_points + (int64_t)first * p.stride, p.stride,
                                            q.column_end - first, d, p.stride);
  }
};

// What a score task leaves for the product that follows.
template <class A>
struct TaskScratch {
  typename A::Point* weights;
  double* sums;          // (tile rows, kRowSumKinds)
  uint32_t* near_tiles;  // bits: column tiles in which there are near pairs, whose marks are in `near`
  uint32_t* near;        // (tile rows, kNearWords)
};

template <class A, Shape S>
DECOCT_DEVICE TaskScratch<A> scratch_of(const Problem<typename A::T>& p, int slot) {
  char* own = p.scratch + slot * p.scratch_stride;
  TaskScratch<A> scratch{(typename A::Point*)own, nullptr, nullptr, nullptr};
  scratch.sums = (double*)((typename A::T*)own + (p.tangent_centres ? 2 : 1) * weight_elements(S));
  scratch.near_tiles = (uint32_t*)(scratch.sums + tile_rows(S) * kRowSumKinds);
  scratch.near = scratch.near_tiles + 4;
  return scratch;
}

// Weights of a warp's part of a tile to scratch, two columns at a time.
template <class A, int M, int N>
DECOCT_DEVICE void store_weights(typename A::Point* weights, int row, int column,
                                 const typename A::T (&s)[M][N][4]) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int n = 0; n < N; ++n)
        A::store(weights + (row + m * 16 + h * 8 + g) * kWeightColumns + column + n * 8 + 2 * t,
                 s[m][n][2 * h], s[m][n][2 * h + 1]);
}

// `scratch`: whether weights and row sums go there, for a product kernel to use.
template <class A, Shape S, bool Gaussian>
DECOCT_KERNEL score_kernel(Problem<typename A::T> p, int first_task, bool scratch) {
  using T = typename A::T;
  using Point = typename A::Point;
  using Tile = ScoreTile<S>;
  Shared shared;
  Point* stages = shared.take<Point>(kStages * score_stage<A, S>());
  uint32_t* near_bits = shared.take<uint32_t>(Tile::kRows * Tile::kColumns / 32);
  double* near_sums = shared.take<double>(Tile::kRows);
  double* row_sums = shared.take<double>(2 * Tile::kWarpColumns * Tile::kRows);
  double* partial = shared.take<double>(kWarps);
  auto* constants = shared.take<ProfileConstants<T>>(1);

  const Task task = p.tasks[first_task + block_index()];
  const Pairs<T> q = begin_pairs<Tile::kRows, Tile::kColumns>(p, task, constants, near_bits, near_sums);

  const TaskScratch<A> own = scratch_of<A, S>(p, block_index());
  Point* weights = scratch && q.gradient ? own.weights : nullptr;
  uint32_t near_tiles = 0;
  const int steps = (p.stride + kStep<Point> - 1) / kStep<Point>;
  const int total = (task.col_end - task.col_begin + Tile::kColumns - 1) / Tile::kColumns * steps;
  const ScoreSteps<A, S> source{p,
                                q,
                                (const Point*)q.rows->points + (q.first_row + q.row_begin) * p.stride,
                                (const Point*)q.columns->points + q.first_column * p.stride,
                                stages,
                                task.col_begin,
                                steps};
  RowTotals<Tile::kM> totals{};
  T sums[Tile::kM][Tile::kN][4] = {};
  for (int at = 0; at < kStages - 1; ++at) {
    if (at < total) source.load(at);
    commit_copies();
  }
  for (int at = 0; at < total; ++at) {
    wait_copies<kStages - 2>();
    sync_block();
    if (at + kStages - 1 < total) source.load(at + kStages - 1);
    commit_copies();
    constexpr int pitch = row_pitch<Point>(kStep<Point>);
    const Point* stage = stages + at % kStages * score_stage<A, S>();
    A::multiply_rows(sums, stage + Tile::row() * pitch, pitch, stage + (Tile::kRows + Tile::column()) * pitch,
                     pitch, kStep<Point>);
    if (at % steps != steps - 1) continue;

    const int first = task.col_begin + at / steps * Tile::kColumns;
    const bool near =
        weigh<A, Gaussian, Tile::kColumns>(p, q, sums, Tile::row(), Tile::column(), first, totals);
    Point* tile_weights = weights ? weights + first - task.col_begin : nullptr;
    if (tile_weights) store_weights<A>(tile_weights, Tile::row(), Tile::column(), sums);
    if (sync_block_any(near)) {
      const int at_column = first - task.col_begin;
      near_tiles |= 1u << at_column / Tile::kColumns;
      uint32_t* kept = weights ? own.near + at_column / 32 : nullptr;
      for_near<Tile::kRows, Tile::kColumns>(near_bits, kept, first, [&](int row, int j) {
        const NearPair<T> pair = near_pair(p, q, row, j);
        if (lane_index() != 0) return;
        near_sums[row] += (double)pair.k * (double)pair.weight;
        if (q.kernel) tile_weights[row * kWeightColumns + j - first] = A::point(pair.k);
      });
    }
    clear(sums);
  }
  wait_copies<0>();
  sync_block();
  collect_rows<Tile::kRows, Tile::kWarpColumns>(totals, Tile::row(), warp_index() % Tile::kWarpColumns,
                                                row_sums);
  if (scratch && thread_index() == 0) *own.near_tiles = q.kernel ? 0 : near_tiles;
  finish_task<Tile::kRows>(p, q, task, row_sums, scratch ? own.sums : nullptr, partial);
}

}  // namespace decoct::cuda
