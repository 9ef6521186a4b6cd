// The step of partial transport by one block: csrc/cpu/partial.inl has the formula and the idea.
//
// Bytes: 24 a row and round of the multiplier, of which there are few, and 32 a row once.
#pragma once
#include "reduce.cuh"
#include "transport.cuh"

namespace decoct::cuda {

// T lies in `next`, where the potentials go.
template <class T>
struct PartialSide {
  const T* weights;
  const double* old;
  double* next;
  int rows;
};

template <class T>
DECOCT_DEVICE PartialSide<T> partial_side(const TermSide<T>& side) {
  return {side.side->weights + side.first, side.old, side.next, side.rows};
}

template <class T>
DECOCT_DEVICE double multiplier(const PartialSide<T>& side, double mass, double eps, double* partial) {
  double h = -INFINITY;
  while (true) {
    double full = 0, least = INFINITY, most = -INFINITY, rest = 0;
    for (int i = thread_index(); i < side.rows; i += kThreads) {
      const double weight = (double)side.weights[i], at = side.next[i];
      if (!(weight > 0)) continue;
      if (at <= h) full += weight;
      if (at > h && at < least) least = at;
      if (at > most) most = at;
    }
    least = -block_most(-least, partial);
    const double left = mass - block_sum(full, partial);
    if (!(left > 0)) return h;
    if (!(least < (double)INFINITY)) return block_most(most, partial);
    for (int i = thread_index(); i < side.rows; i += kThreads) {
      const double weight = (double)side.weights[i], at = side.next[i];
      if (weight > 0 && at > h) rest += weight * ::exp((least - at) / eps);
    }
    const double next = least + eps * ::log(left / block_sum(rest, partial));
    if (!(next > h)) return h;
    h = next;
  }
}

// The next potentials; returns this thread's sums.
template <class T>
DECOCT_DEVICE StepSums finish_partial(const PartialSide<T>& side, const TransportState& state, double h) {
  StepSums sums{};
  for (int i = thread_index(); i < side.rows; i += kThreads) {
    const double weight = (double)side.weights[i], at = side.next[i], old = side.old[i];
    double next = at > h ? 0.0 : at - h;
    if (weight != 0) {
      const double sum = ::exp((old + state.shift - at) / state.eps);
      sums.missed += weight * ::fabs(sum - ::exp((next + h - at) / state.eps));
      sums.mass += weight;
      sums.plan += weight * sum;
    }
    if (!takes_all(state.pass)) next = 0.5 * old + 0.5 * next;
    if (weight != 0) sums.value += weight * next;
    side.next[i] = next;
  }
  return sums;
}

// Returns the multiplier; the sums are those of this thread.
template <class T>
DECOCT_DEVICE double step_partial(const Transport<T>& t, const TransportState& state,
                                  const PartialSide<T>& rows, const PartialSide<T>& columns,
                                  StepSums& of_rows, StepSums& of_columns, double* partial) {
  const double h_rows = multiplier(rows, t.mass, state.eps, partial);
  const double h_columns = multiplier(columns, t.mass, state.eps, partial);
  of_rows = finish_partial(rows, state, h_rows);
  of_columns = finish_partial(columns, state, h_columns);
  const double h = (h_rows + h_columns) / 2;
  return takes_all(state.pass) ? h : 0.5 * state.shift + 0.5 * h;
}

}  // namespace decoct::cuda
