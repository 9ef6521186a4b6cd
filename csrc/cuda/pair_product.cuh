// Products of two tiles of rows, whose operands are read where the caller has them, in any type and stride,
// on their way to shared memory through registers: while one step is multiplied, the numbers of the next
// arrive.
#pragma once
#include "score.cuh"

namespace decoct::cuda {

template <class T>
constexpr Shape pair_shape = sizeof(T) == 8 ? Shape::medium : Shape::square;
template <class Point>
constexpr int kPairStep = sizeof(Point) == 8 ? 16 : 32;

// Rows of an operand of a product, k running along or across them.
template <class T>
struct Operand {
  const void* data;
  DType dtype;
  int64_t first, row_step, k_step;
  int rows;  // that exist
  bool along_rows;
};

// The elements of a tile of `Rows` x k that a thread brings in.
template <int Rows, int Step>
struct PairShare {
  static constexpr int kCount = Rows * Step / kThreads;
  int row, k, row_step, k_step;

  DECOCT_DEVICE explicit PairShare(bool along_rows) {
    const int t = thread_index();
    row = along_rows ? t % Rows : t / Step;
    k = along_rows ? t / Rows : t % Step;
    row_step = along_rows ? 0 : kThreads / Step;
    k_step = along_rows ? kThreads / Rows : 0;
  }
};

// sums += L R^T for a tile of rows of L and of R.
template <class A>
struct PairProduct {
  using T = typename A::T;
  using Point = typename A::Point;
  using Tile = ScoreTile<pair_shape<T>>;
  static constexpr int kStep = kPairStep<Point>, kPitch = row_pitch<Point>(kStep);
  static constexpr int kStage = (Tile::kRows + Tile::kColumns) * kPitch;
  using Left = PairShare<Tile::kRows, kStep>;
  using Right = PairShare<Tile::kColumns, kStep>;

  template <class Share>
  static DECOCT_DEVICE void fetch(const Operand<T>& operand, int begin, int depth,
                                  T (&numbers)[Share::kCount]) {
    const Share share(operand.along_rows);
    with_numbers<T>(operand, [&](const auto* data, auto widen) {
#pragma unroll
      for (int s = 0; s < Share::kCount; ++s) {
        const int row = share.row + s * share.row_step, k = begin + share.k + s * share.k_step;
        const bool there = row < operand.rows && k < depth;
        numbers[s] = there ? widen(data[operand.first + row * operand.row_step + k * operand.k_step]) : T(0);
      }
    });
  }

  template <class Share>
  static DECOCT_DEVICE void store(Point* stage, bool along_rows, const T (&numbers)[Share::kCount]) {
    const Share share(along_rows);
#pragma unroll
    for (int s = 0; s < Share::kCount; ++s)
      stage[(share.row + s * share.row_step) * kPitch + share.k + s * share.k_step] =
          A::point(A::weight(numbers[s]));
  }

  static DECOCT_DEVICE void add(Point* stages, const Operand<T>& left, const Operand<T>& right, int depth,
                                T (&sums)[Tile::kM][Tile::kN][4]) {
    const auto fetch_right = [&](int begin, T(&numbers)[Right::kCount]) {
      fetch<Right>(right, begin, depth, numbers);
    };
    add(stages, left, right.along_rows, fetch_right, depth, sums);
  }

  // The same where fetch_right(begin, numbers) supplies what Right::each has of k from `begin` on. Nobody
  // uses `stages` before it any more, and its end is a barrier, as is that of each step.
  template <class FetchRight>
  static DECOCT_DEVICE void add(Point* stages, const Operand<T>& left, bool right_along_rows,
                                FetchRight fetch_right, int depth, T (&sums)[Tile::kM][Tile::kN][4]) {
    T of_left[Left::kCount] = {}, of_right[Right::kCount] = {};
    const int steps = (depth + kStep - 1) / kStep;
    // Of the step before it, each pass multiplies what came.
    for (int step = 0; step <= steps; ++step) {
      if (step < steps) {
        fetch<Left>(left, step * kStep, depth, of_left);
        fetch_right(step * kStep, of_right);
      }
      if (step > 0) {
        const Point* stage = stages + (step - 1) % 2 * kStage;
        A::multiply_rows(sums, stage + Tile::row() * kPitch, kPitch,
                         stage + (Tile::kRows + Tile::column()) * kPitch, kPitch, kStep);
      }
      if (step < steps) {
        Point* stage = stages + step % 2 * kStage;
        store<Left>(stage, left.along_rows, of_left);
        store<Right>(stage + Tile::kRows * kPitch, right_along_rows, of_right);
      }
      sync_block();
    }
  }
};

// Rows of the caller as an operand, k along them; and their columns, k across.
template <class T>
DECOCT_DEVICE Operand<T> by_rows(const Source& s, int first, int rows) {
  return {s.data, s.dtype, first * s.stride, s.stride, 1, rows, false};
}
template <class T>
DECOCT_DEVICE Operand<T> by_columns(const Source& s, int first_row, int first, int columns) {
  return {s.data, s.dtype, first_row * s.stride + first, 1, s.stride, columns, true};
}

}  // namespace decoct::cuda
