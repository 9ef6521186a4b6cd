// Weights in scratch times rows: slab_i += sum_j w_ij p_j, for the score tasks of one row tile.
//
//   operations   2 a pair and column of the result; nothing else
//   bytes        a weight is read D / columns-of-a-tile times and a row once for each row tile, from cache
//   bound        the products: at D = 512 in 3xTF32 A100 0.051, H100 0.16 Tpair/s
//
// A block owns a row tile and a tile of the result's columns and runs along the tasks that filled the
// scratch. It alone adds to its part of the slab; launches come one after another: the order of all sums is
// fixed. The block of the first columns adds the tasks' row sums as well.
#pragma once
#include "hvp.cuh"

namespace decoct::cuda {

template <class A, Shape S>
constexpr int product_stage() {
  using Point = typename A::Point;
  return ScoreTile<S>::kRows * row_pitch<Point>(kStep<Point>) +
         kStep<Point> * column_pitch<Point>(ScoreTile<S>::kColumns);
}
template <class A, Shape S>
constexpr int product_shared() {
  return kStages * product_stage<A, S>() * (int)sizeof(typename A::Point);
}

// A place in the sequence of all steps: set of weights, score task, columns of it.
struct ProductCursor {
  int task, set, column;
};

template <class A, Shape S>
struct ProductSteps {
  using Point = typename A::Point;
  const Problem<typename A::T>& p;
  const Task& product;
  Point* stages;
  int first_score, result_column, sets;  // sets of weights: two for Hessian-vector products

  DECOCT_DEVICE bool inside(const ProductCursor& c) const { return c.task < product.value; }
  DECOCT_DEVICE void advance(ProductCursor& c) const {
    const Task& score = p.tasks[c.task];
    c.column += kStep<Point>;
    if (c.column < score.col_end - score.col_begin) return;
    c.column = 0;
    if (++c.set < sets) return;
    c.set = 0;
    ++c.task;
  }

  DECOCT_DEVICE void load(const ProductCursor& c, int at) const {
    using Tile = ScoreTile<S>;
    const Task score = p.tasks[c.task];
    const bool columns_x = score.flags & kColumnsX;
    const Side<typename A::T>& side = side_of(p, columns_x);
    const int64_t first = first_row(p.segments[score.segment], columns_x) + score.col_begin + c.column;
    const void* rows = p.vectors ? p.vectors : c.set == 0 ? side.points : side.tangents;
    const Point* weights =
        scratch_of<A, S>(p, c.task - first_score).weights + c.set * weight_elements(S) + c.column;
    Point* stage = stages + at % kStages * product_stage<A, S>();
    load_tile<kStep<Point>, Tile::kRows>(stage, row_pitch<Point>(kStep<Point>), weights, kWeightColumns,
                                         Tile::kRows, 0, kStep<Point>);
    load_tile<Tile::kColumns, kStep<Point>>(
        stage + Tile::kRows * row_pitch<Point>(kStep<Point>), column_pitch<Point>(Tile::kColumns),
        (const Point*)rows + first * p.slab_stride, p.slab_stride, score.col_end - score.col_begin - c.column,
        result_column, p.slab_stride);
  }
};

template <class T, int M, int N>
DECOCT_DEVICE void add_to_slab(T* slab, int64_t stride, int rows, int columns, int row, int column,
                               const T (&sums)[M][N][4]) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const int i = row + m * 16 + h * 8 + g, d = column + n * 8 + 2 * t;
        if (i >= rows || d >= columns) continue;
        Pair<T>* target = (Pair<T>*)(slab + i * stride + d);
        const Pair<T> old = *target;
        *target = {old.v[0] + sums[m][n][2 * h], old.v[1] + sums[m][n][2 * h + 1]};
      }
}

template <class A, Shape S>
DECOCT_DEVICE void add_row_sums(const Problem<typename A::T>& p, const Task& product, int first_score) {
  const int rows = product.row_end - product.row_begin;
  for (int at = thread_index(); at < rows * kRowSumKinds; at += kThreads) {
    double total = p.sums[(int64_t)product.slab * kRowSumKinds + at];
    for (int task = product.col_begin; task < product.value; ++task)
      total += scratch_of<A, S>(p, task - first_score).sums[at];
    p.sums[(int64_t)product.slab * kRowSumKinds + at] = total;
  }
}

// Derivatives of the near pairs that the score tasks left out, for columns [begin, end) of the slab.
template <class A, Shape S>
DECOCT_DEVICE void add_near_pairs(const Problem<typename A::T>& p, const Task& product, int first_score,
                                  int begin, int end) {
  using T = typename A::T;
  for (int index = product.col_begin; index < product.value; ++index) {
    const TaskScratch<A> scratch = scratch_of<A, S>(p, index - first_score);
    const uint32_t tiles = *scratch.near_tiles;
    if (tiles == 0) continue;
    const Task score = p.tasks[index];
    Pairs<T> q = make_pairs(p, score);
    q.constants = &p.states[score.segment].constants;
    for (int row = warp_index(); row < tile_rows(S); row += kWarps)
      for (int word = 0; word < kNearWords; ++word) {
        if (!(tiles >> word * 32 / tile_columns(S) & 1)) continue;
        for (uint32_t left = scratch.near[row * kNearWords + word]; left; left &= left - 1) {
          const int j = score.col_begin + word * 32 + lowest_bit(left);
          T* slab = q.slab + row * q.slab_stride;
          if (p.tangent_centres)
            add_near_tangent(p, near_tangent(p, q, row, j), slab, begin, end);
          else
            add_near_pair(p, near_pair(p, q, row, j), slab, begin, end);
        }
      }
  }
}

template <class A, Shape S>
DECOCT_KERNEL product_kernel(Problem<typename A::T> p, int first_task, int first_score, int result_tiles) {
  using T = typename A::T;
  using Point = typename A::Point;
  using Tile = ScoreTile<S>;
  Shared shared;
  Point* stages = shared.take<Point>(kStages * product_stage<A, S>());
  const Task product = p.tasks[first_task + block_index() / result_tiles];
  const int result_tile = block_index() % result_tiles;
  if (result_tile == 0) add_row_sums<A, S>(p, product, first_score);
  if (!(product.flags & kGradient)) return;

  const ProductSteps<A, S> source{
      p, product, stages, first_score, result_tile * Tile::kColumns, p.moving ? 2 : 1};
  // Before the sums of the product take the registers.
  const int begin = source.result_column,
            end = begin + Tile::kColumns < p.dim ? begin + Tile::kColumns : p.dim;
  if (!p.vectors) add_near_pairs<A, S>(p, product, first_score, begin, end);
  ProductCursor next{product.col_begin, 0, 0}, now = next;
  for (int at = 0; at < kStages - 1; ++at) {
    if (source.inside(next)) {
      source.load(next, at);
      source.advance(next);
    }
    commit_copies();
  }
  T sums[Tile::kM][Tile::kN][4] = {};
  for (int at = 0; source.inside(now); ++at, source.advance(now)) {
    wait_copies<kStages - 2>();
    sync_block();
    if (source.inside(next)) {
      source.load(next, at + kStages - 1);
      source.advance(next);
    }
    commit_copies();
    const Point* stage = stages + at % kStages * product_stage<A, S>();
    A::multiply_columns(sums, stage + Tile::row() * row_pitch<Point>(kStep<Point>),
                        row_pitch<Point>(kStep<Point>),
                        stage + Tile::kRows * row_pitch<Point>(kStep<Point>) + Tile::column(),
                        column_pitch<Point>(Tile::kColumns), kStep<Point>);
  }
  wait_copies<0>();
  add_to_slab(p.slabs + (int64_t)product.slab * p.slab_stride, p.slab_stride,
              product.row_end - product.row_begin, p.slab_stride, Tile::row(),
              source.result_column + Tile::column(), sums);
}

}  // namespace decoct::cuda
