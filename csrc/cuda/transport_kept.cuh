// All iterations of a term whose costs are kept, in one block (transport.cuh).
//
//   operations   an addition, a multiply-add, an exponential and two more multiply-adds a pair and pass
//   bytes        one number a pair and pass, from first- or second-level cache: such a term has at most
//                kKeptPairs of them
//   bound        16 exponentials a cycle and multiprocessor: a pass over 256 x 50 pairs takes some 800 cycles
//
// A warp takes a row, a lane up to kLaneColumns of its columns at a time, so that costs are read in whole
// lines; what a column adds up to stays in its lane until the warps' shares are added in order. Potentials,
// sums and biases lie in shared memory, and no other block or launch is waited for between passes. Of a
// symmetric term all pairs are taken, for rows alone.
#pragma once
#include "transport_steps.cuh"

namespace decoct::cuda {

constexpr int kLaneColumns = 8, kKeptColumns = 32 * kLaneColumns;

template <class T>
constexpr int kept_shared(int rows) {
  return rows * (3 * 8 + (int)sizeof(T)) + kWarps * kKeptColumns * (int)sizeof(T) + kWarps * 8 + 16 * 6;
}

// The rows of a term and behind them, unless it is symmetric, its columns.
template <class T>
struct KeptTerm {
  TermSide<T> rows, columns;
  const T* costs;
  int pitch, count;
  double *old, *next, *sums;  // (count)
  T *biases, *parts;          // (count), (kWarps, kKeptColumns)
  bool symmetric;

  DECOCT_DEVICE bool is_row(int at) const { return at < rows.rows; }
  DECOCT_DEVICE int place(int at) const { return is_row(at) ? at : at - rows.rows; }
  // Of either side, number by number: a reference to one of two structures would lie in memory.
  template <class V>
  DECOCT_DEVICE V either(int at, V of_rows, V of_columns) const {
    return is_row(at) ? of_rows : of_columns;
  }
  DECOCT_DEVICE double weight(int at) const {
    return (double)either(at, rows.side->weights + rows.first,
                          columns.side->weights + columns.first)[place(at)];
  }
  DECOCT_DEVICE int first_column() const { return symmetric ? 0 : rows.rows; }
};

// The sums of one pass.
template <class T>
DECOCT_DEVICE void sum_kept(const KeptTerm<T>& k, T rate, T shift) {
  const int n = k.rows.rows, m = k.columns.rows;
  const T *row_weights = k.rows.side->weights + k.rows.first,
          *column_weights = k.columns.side->weights + k.columns.first;
  for (int begin = 0; begin < m; begin += kKeptColumns) {
    T biases[kLaneColumns], weights[kLaneColumns], sums[kLaneColumns] = {};
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c) {
      const int j = begin + c * 32 + lane_index();
      biases[c] = j < m ? k.biases[k.first_column() + j] : -(T)INFINITY;
      weights[c] = j < m ? column_weights[j] : T(0);
    }
    for (int i = warp_index(); i < n; i += kWarps) {
      const T *costs = k.costs + (int64_t)i * k.pitch + begin + lane_index(), own = k.biases[i] + shift,
              weight = row_weights[i];
      T sum = 0;
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const T cost = begin + c * 32 + lane_index() < m ? costs[c * 32] : T(0);
        const T plan = Math::exp2_of_any(multiply_add(-rate, cost, own + biases[c]));
        sum += plan * weights[c];
        sums[c] += plan * weight;
      }
      sum = warp_sum(sum);
      if (lane_index() == 0) k.sums[i] = (begin == 0 ? 0.0 : k.sums[i]) + (double)sum;
    }
    if (k.symmetric) continue;
#pragma unroll
    for (int c = 0; c < kLaneColumns; ++c)
      k.parts[warp_index() * kKeptColumns + c * 32 + lane_index()] = sums[c];
    sync_block();
    for (int j = thread_index(); j < kKeptColumns && begin + j < m; j += kThreads) {
      double total = 0;
      for (int w = 0; w < kWarps; ++w) total += (double)k.parts[w * kKeptColumns + j];
      k.sums[n + begin + j] = total;
    }
    sync_block();
  }
  sync_block();
}

// Logarithms of the sums to `next`; a warp makes again those that are out of range.
template <class T>
DECOCT_DEVICE void take_logs(const KeptTerm<T>& k, const TransportState& state) {
  for (int at = thread_index(); at < k.count; at += kThreads) k.next[at] = ::log(k.sums[at]);
  sync_block();
  for (int at = warp_index(); at < k.count; at += kWarps) {
    if (in_range<T>(k.sums[at])) continue;
    const bool row = k.is_row(at);
    const int others = row ? k.columns.rows : k.rows.rows;
    const T* weights =
        k.either(at, k.columns.side->weights + k.columns.first, k.rows.side->weights + k.rows.first);
    const double* potentials = k.old + (row ? k.first_column() : 0);
    LogSum total;
    for (int j = lane_index(); j < others; j += 32) {
      const double cost =
          (double)(row ? k.costs[(int64_t)at * k.pitch + j] : k.costs[(int64_t)j * k.pitch + k.place(at)]);
      total.add((potentials[j] - cost) / state.eps, (double)weights[j]);
    }
    total.join_lanes();
    sync_warp();
    if (lane_index() != 0) continue;
    k.next[at] = total.value() + (k.old[at] + state.shift) / state.eps;
    k.sums[at] = ::exp(k.next[at]);
  }
  sync_block();
}

template <class T>
DECOCT_KERNEL kept_kernel(Problem<T> p, Transport<T> t, int launches) {
  Shared shared;
  const Term term = t.terms[block_index()];
  KeptTerm<T> k;
  k.symmetric = term.rows_x == term.columns_x;
  k.count = term.rows + (k.symmetric ? 0 : term.columns);
  k.old = shared.take<double>(k.count);
  k.next = shared.take<double>(k.count);
  k.sums = shared.take<double>(k.count);
  k.biases = shared.take<T>(k.count);
  k.parts = shared.take<T>(kWarps * kKeptColumns);
  double* partial = shared.take<double>(kWarps);
  TransportState state = state_of(t, term);
  if (state.pass == Pass::done) return;
  k.rows = side_of_term(p, t, term, true, 0);
  k.columns = side_of_term(p, t, term, false, 0);
  k.costs = t.kept + term.kept;
  k.pitch = cost_pitch(term.columns);
  for (int at = thread_index(); at < k.count; at += kThreads)
    k.old[at] = k.either(at, k.rows.old, k.columns.old)[k.place(at)];

  for (int left = launches;; --left) {
    for (int at = thread_index(); at < k.count; at += kThreads)
      k.biases[at] = (T)(k.old[at] * (kLog2e / state.eps));
    sync_block();
    sum_kept(k, (T)(kLog2e / state.eps), (T)(state.shift * kLog2e / state.eps));
    take_logs(k, state);
    StepSums of_rows{}, of_columns{};
    for (int at = thread_index(); at < k.count; at += kThreads) {
      StepSums own{};
      k.next[at] = step_row(t, state, k.either(at, k.rows.reach, k.columns.reach), k.old[at], k.sums[at],
                            k.next[at], k.weight(at), own);
      of_rows.add_if(k.is_row(at), own);
      of_columns.add_if(!k.is_row(at), own);
    }
    double shift = state.shift;
    if (t.mass > 0) {
      sync_block();
      const int n = k.rows.rows;
      shift = step_partial(
          t, state, PartialSide<T>{k.rows.side->weights + k.rows.first, k.old, k.next, n},
          PartialSide<T>{k.columns.side->weights + k.columns.first, k.old + n, k.next + n, k.columns.rows},
          of_rows, of_columns, partial);
    }
    of_rows = add_up(of_rows, partial);
    of_columns = add_up(of_columns, partial);
    end_pass(t, term, state, of_rows, of_columns, shift, left);
    if (state.pass == Pass::done) break;
    double* old = k.old;
    k.old = k.next;
    k.next = old;
  }

  const auto leave = [&](const TermSide<T>& side, int first) {
    for (int i = thread_index(); i < side.rows; i += kThreads) {
      side.old[i] = k.old[first + i];
      side.next[i] = k.next[first + i];
      set_row_bias(side, i, side.next[i], state.eps);
      set_column_bias(t, side, i, side.old[i], state.eps);
    }
  };
  leave(k.rows, 0);
  if (!k.symmetric) leave(k.columns, k.rows.rows);
  if (thread_index() != 0) return;
  state.parity = 1;
  state_of(t, term) = state;
  t.shifts[term.segment * kTermKinds + term.kind] = state.shift * (kLog2e / state.eps);
}

}  // namespace decoct::cuda
