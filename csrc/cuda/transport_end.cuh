// The end of transport (transport.cuh): potentials, derivatives and values to the caller.
//
//   bytes   each slab of the derivative is read once, each result written once: memory bandwidth is the bound
//
// The derivative by x_i is sum_j P_ij dC_ij / dx_i: -eps times that of sum_ij a_i b_j exp((f_i + g_j) / eps)
// k_ij with k = exp(-C / eps), which the kernels over pairs have left in slabs, those of the cross term
// before those of the self term. Where the marginal is kept, it is divided by what the row sums to instead of
// 1, for rounding in the exponents then cancels. A warp takes a row; the blocks behind the last chunk end one
// segment each.
#pragma once
#include "transport_steps.cuh"

namespace decoct::cuda {

// One row's derivative by one term: what sum_j w_ij (p_i - p_j) is multiplied by, and sum_j w_ij.
struct RowDerivative {
  double factor, weight;
  int64_t first, slabs;
  bool exact;  // the sum of differences itself is in the slab
};

// sum_j P_ij (p_i - p_j) over sum_j P_ij, divided by distances where these are the cost, to the row's first
// slab. Returns the logarithm of that sum without the row's potential.
template <class T>
DECOCT_DEVICE double exact_derivative(const Problem<T>& p, const Transport<T>& t, const TermSide<T>& side,
                                      const TermSide<T>& other, const TransportState& state, double unit,
                                      int i, T* slab) {
  for (int d = lane_index(); d < p.dim; d += 32) slab[d] = 0;
  const double weight = (double)side.side->weights[side.first + i];
  LogSum total;
  for (int j = 0; j < other.rows; ++j) {
    double square;
    total.add(exact_exponent(p, t, side, other, unit, state.eps, i, j, square),
              (double)other.side->weights[other.first + j]);
  }
  const double log_sum = total.value();
  for (int j = 0; j < other.rows; ++j) {
    const double b = (double)other.side->weights[other.first + j];
    if (b == 0) continue;
    double square;
    const double exponent = exact_exponent(p, t, side, other, unit, state.eps, i, j, square);
    const double plan = b * ::exp(exponent - log_sum);
    const double root = ::sqrt(square);
    const double w = weight * (t.squared ? plan : root > 0 ? plan / root : 0.0);
    const PairRows<T> pair{side.side->points, other.side->points, (side.first + i) * p.stride,
                           (other.first + j) * p.stride};
    for (int d = lane_index(); d < p.dim; d += 32) slab[d] += (T)(w * (double)pair.difference(p, d));
  }
  return log_sum;
}

template <class T>
DECOCT_DEVICE RowDerivative row_derivative(const Problem<T>& p, const Transport<T>& t, const SegmentPlan& s,
                                           const Term& term, const TransportState& state, int i) {
  const bool on_x = term.rows_x, self = term.rows_x == term.columns_x;
  const int rows = rows_of(s, on_x), cross = on_x ? s.x_cross_slabs : s.y_cross_slabs;
  RowDerivative own{};
  own.first = (int64_t)(on_x ? s.x_slab : s.y_slab) + i + (self ? (int64_t)cross * rows : 0);
  own.slabs = self ? (on_x ? s.x_slabs : s.y_slabs) - cross : cross;
  double sum = 0;
  for (int64_t k = 0; k < own.slabs; ++k) {
    const double* sums = p.sums + (own.first + k * rows) * kRowSumKinds;
    sum += sums[0];
    own.weight += sums[1];
  }
  const double spread = p.states[term.segment].spread;
  const TermSide<T> side = side_of_term(p, t, term, true, 1 - state.parity);
  own.factor = -2 * state.eps / spread;
  const bool balanced = side.reach == (double)INFINITY && !(t.mass > 0);
  if (!in_range<T>(sum)) {
    const TermSide<T> other = side_of_term(p, t, term, false, 1 - state.parity);
    const double log_sum = exact_derivative(p, t, side, other, state, cost_unit(t, spread), i,
                                            p.slabs + own.first * p.slab_stride);
    own.factor = t.squared ? spread : 1;
    if (!balanced) own.factor *= ::exp((side.next[i] + state.shift) / state.eps + log_sum);
    own.exact = true;
  } else if (balanced) {
    own.factor /= sum;
  }
  if (self) own.factor = -own.factor;
  return own;
}

template <class T>
DECOCT_DEVICE void end_row(const Problem<T>& p, const Transport<T>& t, int segment, bool on_x, int i) {
  const SegmentPlan& s = p.segments[segment];
  const int index = !on_x;
  const int64_t row = first_row(s, on_x) + i;
  const bool empty = s.n == 0 || s.m == 0, broken = !empty && p.states[segment].broken;
  const bool wanted = t.need & (on_x ? kNeedX : kNeedY);
  T* gradient = t.gradient[index] + row * t.gradient_stride[index];
  for (int d = lane_index(); d < p.dim && wanted; d += 32) gradient[d] = broken ? (T)::nan("") : T(0);
  if (empty) return;
  for (int self = 0; self < 2; ++self) {
    Term term{};
    term.segment = segment;
    term.kind = !self ? 1 : on_x ? 0 : 2;
    term.rows_x = on_x;
    term.columns_x = self ? on_x : !on_x;
    term.rows = rows_of(s, on_x);
    term.columns = rows_of(s, term.columns_x);
    if (!(t.given_terms >> term.kind & 1)) continue;
    const TransportState state = state_of(t, term);
    if (lane_index() == 0) {
      const double potential = t.potentials[index][self][state.parity * t.rows[index] + row];
      const double moved = on_x ? state.shift - state.centre : state.centre;
      t.out[index][self][row] = broken ? (T)::nan("") : (T)(potential + moved);
    }
    if (!wanted || broken) continue;
    const RowDerivative own = row_derivative(p, t, s, term, state, i);
    for (int d = lane_index(); d < p.dim; d += 32) {
      T total = 0;
      if (own.exact) {
        total = p.slabs[own.first * p.slab_stride + d];
      } else {
        for (int64_t k = 0; k < own.slabs; ++k)
          total += p.slabs[(own.first + k * rows_of(s, on_x)) * p.slab_stride + d];
        const Side<T>& side = side_of(p, on_x);
        total = (T)own.weight * read_packed(p, side.points, row * p.stride + d) - total;
      }
      gradient[d] += (T)own.factor * total;
    }
  }
}

template <class T>
DECOCT_KERNEL end_kernel(Problem<T> p, Transport<T> t) {
  if (block_index() < t.chunks) {
    const Chunk chunk = p.chunks[block_index()];
    for (int i = chunk.row_begin + warp_index(); i < chunk.row_end; i += kWarps)
      end_row(p, t, chunk.segment, chunk.on_x, i);
    return;
  }
  const int segment = block_index() - t.chunks;
  const SegmentPlan& s = p.segments[segment];
  if (thread_index() != 0) return;
  const bool empty = s.n == 0 || s.m == 0;
  double value = 0, error = 0;
  int64_t iterations = 0;
  for (const int kind : {1, 0, 2}) {
    if (empty || !(t.given_terms >> kind & 1)) continue;
    const TransportState state = t.states[segment * kTermKinds + kind];
    value += kind == 1 ? state.value : -state.value;
    error = larger(state.missed, error);
    iterations = state.iterations > iterations ? state.iterations : iterations;
  }
  const bool broken = !empty && p.states[segment].broken;
  t.value[segment] = broken ? ::nan("") : value;
  t.error[segment] = broken ? ::nan("") : error;
  t.iterations[segment] = iterations;
}

}  // namespace decoct::cuda
