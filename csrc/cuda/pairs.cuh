// A block of pairs: what a task's kernel knows of it, what it starts with, and what it leaves at its end.
#pragma once
#include "profile.cuh"
#include "reduce.cuh"
#include "tile.cuh"

namespace decoct::cuda {

// `rows` and `columns` of a segment, and what becomes of their pairs.
template <class T>
struct Pairs {
  const Side<T>*rows, *columns;
  int64_t first_row, first_column;  // of the segment
  int row_begin, row_end, column_end;
  int term;                              // its place among all terms
  bool same;                             // rows and columns are one side: (i, i) is a point and itself
  bool gradient, kernel;                 // weights are wanted: of the derivative, or k itself
  double coefficient;                    // of the value
  T scale;                               // of weights and of row sums
  const ProfileConstants<T>* constants;  // in shared memory
  uint32_t* near_bits;                   // (tile rows, tile columns / 32)
  double* near_sums;                     // (tile rows): what sum_j b_j k_ij has beside the tile's pairs
  T* slab;                               // (tile rows, stride): what the task's rows add up to
  int64_t slab_stride;
};

template <class T>
DECOCT_DEVICE Pairs<T> make_pairs(const Problem<T>& p, const Task& task) {
  const SegmentPlan& s = p.segments[task.segment];
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
  q.term = 3 * task.segment + (!q.same ? 1 : rows_x ? 0 : 2);
  double coefficient = p.coefficients ? p.coefficients[q.term] : 1;
  if (p.kernel.profile == Profile::energy) coefficient *= p.states[task.segment].spread;
  q.coefficient = coefficient * (task.flags & kTwice ? 2 : 1);
  q.scale = (T)(coefficient * (q.same && p.coefficients ? 2 : 1));
  q.gradient = task.flags & kGradient;
  q.kernel = q.gradient && !p.coefficients;
  q.slab = p.slabs + (int64_t)task.slab * p.slab_stride;
  q.slab_stride = p.slab_stride;
  return q;
}

// What is added to a plan's exponents, as powers of two, of pairs of packed rows. It is looked up where there
// are plans: other calls have no registers to spare.
template <class T>
struct PlanBias {
  const T *rows, *columns;
  const int64_t* labels;  // of the rows
  int64_t pitch;
  T unit, shift;

  DECOCT_DEVICE T of_row(int64_t i) const { return rows[i] * unit + shift; }
  DECOCT_DEVICE const T* columns_of(int64_t i) const { return columns + (labels ? labels[i] * pitch : 0); }
  DECOCT_DEVICE T of_pair(int64_t i, int64_t j) const { return of_row(i) + columns_of(i)[j] * unit; }
};

template <class T>
DECOCT_DEVICE PlanBias<T> plan_bias(const Problem<T>& p, const Pairs<T>& q) {
  return {q.rows->row_bias[q.same], q.columns->column_bias[q.same],
          q.rows->labels,           q.columns->bias_pitch,
          (T)p.bias_unit,           (T)(p.shifts ? p.shifts[q.term] : 0.0)};
}
template <class T>
DECOCT_DEVICE T bias_of(const Problem<T>& p, const Pairs<T>& q, int64_t i, int64_t j) {
  return p.plan ? plan_bias(p, q).of_pair(i, j) : T(0);
}

// Near pairs are set apart; a plan of squared distances is a sum in which no pair's terms cancel.
template <class T>
DECOCT_DEVICE bool sets_apart(const Problem<T>& p) {
  return is_radial(p.kernel.profile) &&
         !(p.plan && p.kernel.profile == Profile::gaussian && !p.tangent_centres);
}

// What a task starts with: its pairs; in shared memory the kernel's constants, no marks, and of each row the
// pair of its point and itself, k(0) times the weight (of second derivatives: the tangent's).
template <int Rows, int Columns, class T>
DECOCT_DEVICE Pairs<T> begin_pairs(const Problem<T>& p, const Task& task, ProfileConstants<T>* constants,
                                   uint32_t* near_bits, double* near_sums) {
  Pairs<T> q = make_pairs(p, task);
  q.constants = constants;
  q.near_bits = near_bits;
  q.near_sums = near_sums;
  copy_constants(constants, p.states[task.segment].constants);
  for (int word = thread_index(); word < Rows * Columns / 32; word += kThreads) near_bits[word] = 0;
  const bool with_self = q.same && sets_apart(p);
  const T* weights = p.tangent_centres ? q.rows->tangent_weights : q.rows->weights;
  for (int row = thread_index(); row < Rows; row += kThreads) {
    const int i = q.row_begin + row;
    const bool met = with_self && i < q.row_end && i >= task.col_begin && i < task.col_end;
    near_sums[row] = met ? at_zero(p.kernel) * (double)weights[q.first_row + i] *
                               ::exp2((double)bias_of(p, q, q.first_row + i, q.first_row + i))
                         : 0.0;
  }
  return q;
}

// Sums over a lane's columns, of each of its rows.
template <int M>
struct RowTotals {
  double k[M][2], w[M][2];
};

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
