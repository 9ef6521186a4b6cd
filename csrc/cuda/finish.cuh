// The end of a call: slabs and partial values to the caller's memory, in their order.
//
//   bytes   each slab is read once, each result written once: memory bandwidth is the bound
//
// A warp takes a row; the blocks behind the last chunk add up the values of one segment each.
#pragma once
#include "problem.cuh"
#include "reduce.cuh"

namespace decoct::cuda {

// Derivatives (or products with vectors) of both sides; data == nullptr where none is wanted.
template <class T>
struct Results {
  double* value;
  T *x_points, *y_points, *x_weights, *y_weights;
  int64_t x_stride, y_stride, weight_stride;
  int32_t columns, chunks;  // chunks: blocks of rows; one for each segment follow
};

template <class T>
DECOCT_DEVICE void finish_row(const Problem<T>& p, const Results<T>& out, const SegmentPlan& s,
                              const SegmentState<T>& state, bool on_x, int i) {
  const bool radial = is_radial(p.kernel.profile), empty = s.n == 0 || s.m == 0;
  const int64_t row = first_row(s, on_x) + i, rows = rows_of(s, on_x);
  const int64_t first = (on_x ? s.x_slab : s.y_slab) + i, slabs = on_x ? s.x_slabs : s.y_slabs;
  T *points = on_x ? out.x_points : out.y_points, *weights = on_x ? out.x_weights : out.y_weights;
  const Side<T>& from = side_of(p, on_x);
  const double* sums = p.sums + first * kRowSumKinds;
  double k = 0, w = 0, base = 0;
  for (int64_t split = 0; split < slabs; ++split, sums += rows * kRowSumKinds) {
    k += sums[0];
    w += sums[1];
    base += sums[2];
  }
  const T broken = state.broken && !empty ? (T)::nan("") : T(0);
  if (lane_index() == 0 && weights) weights[row * out.weight_stride] = (T)k + broken;
  if (!points) return;
  points += row * (on_x ? out.x_stride : out.y_stride);
  const bool vectors = p.vectors;
  const double unit = p.kernel.profile == Profile::energy ? state.spread : 1.0;
  const T twice = (T)(2 / state.spread);
  for (int d = lane_index(); d < out.columns; d += 32) {
    T total = 0;
    for (int64_t split = 0; split < slabs; ++split)
      total += p.slabs[(first + split * rows) * p.slab_stride + d];
    if (vectors) {
      total *= (T)unit;
    } else if (radial && !empty) {
      T moved = (T)w * read_packed(p, from.points, row * p.stride + d);
      if (p.moving) moved += (T)base * read_packed(p, from.tangents, row * p.stride + d);
      total = twice * (moved - total);
    }
    points[d] = total + broken;
  }
}

template <class T>
DECOCT_KERNEL finish_kernel(Problem<T> p, Results<T> out) {
  Shared shared;
  double* partial = shared.take<double>(kWarps);
  if (block_index() < out.chunks) {
    const Chunk chunk = p.chunks[block_index()];
    const SegmentPlan s = p.segments[chunk.segment];
    for (int i = chunk.row_begin + warp_index(); i < chunk.row_end; i += kWarps)
      finish_row(p, out, s, p.states[chunk.segment], chunk.on_x, i);
    return;
  }
  const int c = block_index() - out.chunks;
  const SegmentPlan s = p.segments[c];
  double value = 0;
  for (int k = thread_index(); k < s.values; k += kThreads) value += p.partials[s.first_value + k];
  value = block_sum(value, partial);
  if (thread_index() == 0) out.value[c] = s.n == 0 || s.m == 0 ? 0 : p.states[c].broken ? ::nan("") : value;
}

}  // namespace decoct::cuda
