// Value and gradient for D < 16: distances by differences, so that no pair is near.
//
//   operations   3 D, with the gradient 7 D, and one exponential (or root) a pair
//   bytes        a column passes through shared memory once for 64 rows: nothing beside the arithmetic
//   bound        with the gradient three float32 instructions a dimension, from D = 3 on longer than the
//                exponential: at D = 3 A100 1.1, H100 3.7, at D = 15 A100 0.22, H100 0.74 Tpair/s
//
// A lane holds two rows in registers, every column it reads serves both. The columns of a tile are dealt to
// the four warps, whose sums are added in order at the end.
#pragma once
#include "pairs.cuh"

namespace decoct::cuda {

constexpr int kSmallWarpColumns = kSmallColumns / kWarps;

template <class T, int Width>
constexpr int small_shared() {
  return (2 * kSmallColumns * (Width + 1) + kSmallRows * Width) * (int)sizeof(T) +
         2 * kWarps * kSmallRows * 8 + kWarps * 8 + (int)sizeof(ProfileConstants<T>) + 16 * 6;
}

// What a lane knows of one of its rows.
template <class T, int Width>
struct SmallRow {
  T point[Width], gradient[Width], scale;
  double k;
};

template <class T, Profile P, bool One, bool Plan, int Width>
DECOCT_DEVICE void meet_columns(const Problem<T>& p, const Pairs<T>& q, const T* columns, const T* weights,
                                int first, SmallRow<T, Width> (&rows)[2]) {
  constexpr bool multiple = P == Profile::gaussian && One;  // k' of k
  T k_sum[2] = {}, own[2];
  const T* biases[2];
  if constexpr (Plan) {
    const PlanBias<T> bias = plan_bias(p, q);
    for (int r = 0; r < 2; ++r) {
      // A row past the end counts for nothing, whatever it has.
      const int i = q.row_begin + lane_index() + 32 * r;
      const int64_t row = q.first_row + (i < q.row_end ? i : q.row_begin);
      own[r] = bias.of_row(row);
      biases[r] = bias.columns_of(row) + q.first_column + first;
    }
  }
#pragma unroll(Plan ? 1 : 2)
  for (int j = 0; j < kSmallWarpColumns; ++j) {
    T other[Width];
#pragma unroll
    for (int d = 0; d < Width; ++d) other[d] = columns[j * Width + d];
    const T weight = weights[j];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      T argument = 0, towards[Width];  // from the row to the column, or the column
#pragma unroll
      for (int d = 0; d < Width; ++d) {
        towards[d] = is_radial(P) ? other[d] - rows[r].point[d] : other[d];
        argument += towards[d] * (is_radial(P) ? towards[d] : rows[r].point[d]);
      }
      T bias = 0;
      if constexpr (Plan)
        if (first + j < q.column_end) bias = own[r] + biases[r][j] * (T)p.bias_unit;
      const auto jet = profile<P, multiple ? 0 : 1, Math, One, Plan>(*q.constants, argument, bias);
      const T k = jet.k * weight;
      k_sum[r] += k;
      const T w = (multiple ? k * -q.constants->slope[0] : jet.k1 * weight) * rows[r].scale;
#pragma unroll
      for (int d = 0; d < Width; ++d) rows[r].gradient[d] += w * towards[d];
    }
  }
  for (int r = 0; r < 2; ++r) rows[r].k += (double)k_sum[r];
}

template <class T, int Width>
DECOCT_DEVICE void load_small(const Problem<T>& p, const Pairs<T>& q, T* columns, T* weights, int index,
                              int first) {
  load_tile<Width, kSmallColumns>(columns + index % 2 * kSmallColumns * Width, Width,
                                  (const T*)q.columns->points + (q.first_column + first) * p.stride, p.stride,
                                  q.column_end - first, 0, p.stride);
  commit_copies();
  const int j = thread_index();
  if (j < kSmallColumns)
    weights[index % 2 * kSmallColumns + j] =
        first + j < q.column_end ? q.columns->weights[q.first_column + first + j] : T(0);
}

template <class T, bool Gaussian, int Width>
DECOCT_KERNEL small_kernel(Problem<T> p, int first_task) {
  Shared shared;
  T* columns = shared.take<T>(2 * kSmallColumns * Width);
  T* weights = shared.take<T>(2 * kSmallColumns);
  T* gradients = shared.take<T>(kSmallRows * Width);
  double* row_sums = shared.take<double>(2 * kWarps * kSmallRows);
  double* partial = shared.take<double>(kWarps);
  auto* constants = shared.take<ProfileConstants<T>>(1);

  const Task task = p.tasks[first_task + block_index()];
  Pairs<T> q = make_pairs(p, task);
  q.constants = constants;
  copy_constants(constants, p.states[task.segment].constants);
  SmallRow<T, Width> rows[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = q.row_begin + lane_index() + 32 * r;
    const bool inside = i < q.row_end;
    rows[r].k = 0;
    rows[r].scale = inside ? q.rows->weights[q.first_row + i] * q.scale : T(0);
#pragma unroll
    for (int d = 0; d < Width; ++d) {
      rows[r].point[d] = inside ? ((const T*)q.rows->points)[(q.first_row + i) * p.stride + d] : T(0);
      rows[r].gradient[d] = 0;
    }
  }
  load_small<T, Width>(p, q, columns, weights, 0, task.col_begin);
  for (int first = task.col_begin, index = 0; first < task.col_end; first += kSmallColumns, ++index) {
    wait_copies<0>();
    sync_block();
    if (first + kSmallColumns < task.col_end)
      load_small<T, Width>(p, q, columns, weights, index + 1, first + kSmallColumns);
    const int dealt = warp_index() * kSmallWarpColumns, own = index % 2 * kSmallColumns + dealt;
    const auto meet = [&](auto constant, auto one, auto plan) {
      meet_columns<T, decltype(constant)::value, decltype(one)::value, decltype(plan)::value>(
          p, q, columns + own * Width, weights + own, first + dealt, rows);
    };
    // Plans of gaussians are left to the others' kernel: this one has no registers to spare.
    if constexpr (!Gaussian)
      if (p.plan) {
        if (p.kernel.profile == Profile::gaussian)
          meet(std::integral_constant<Profile, Profile::gaussian>{}, std::true_type{}, std::true_type{});
        else
          meet(std::integral_constant<Profile, Profile::laplacian>{}, std::true_type{}, std::true_type{});
        continue;
      }
    with_kernel<Gaussian>(p.kernel.profile, constants->scales,
                          [&](auto constant, auto one) { meet(constant, one, std::false_type{}); });
  }

  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp == warp_index())
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = lane_index() + 32 * r;
#pragma unroll
        for (int d = 0; d < Width; ++d) {
          T& sum = gradients[row * Width + d];
          sum = (warp == 0 ? T(0) : sum) + rows[r].gradient[d];
        }
        double& k = row_sums[row];
        k = (warp == 0 ? 0.0 : k) + rows[r].k;
        row_sums[kSmallRows + row] = 0;  // the differences are in the gradient already
      }
    sync_block();
  }
  if (q.gradient)
    for (int at = thread_index(); at < (q.row_end - q.row_begin) * Width; at += kThreads)
      q.slab[at / Width * q.slab_stride + at % Width] = gradients[at];
  double* sums = task.flags & (kGradient | kRowSums) ? p.sums + (int64_t)task.slab * kRowSumKinds : nullptr;
  finish_task<kSmallRows>(p, q, task, row_sums, sums, partial);
}

}  // namespace decoct::cuda
