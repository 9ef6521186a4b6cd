// How transport begins, and the step of a pass (transport.cuh).
//
//   box     the corners of the box around each segment's rows, and from them the first state of its terms
//   begin   the first potentials and what exponents have of them
//   step    sums of a pass to potentials: slabs of sums are added in order, a thread a row
//
// Bytes: box reads each packed row once; a step 8 bytes a slab and row, at most 64 slabs, and writes 24.
// Memory bandwidth is the bound of both. A row whose sum is out of range costs 2 D operations a pair once
// more.
#pragma once
#include "partial.cuh"
#include "reduce.cuh"

namespace decoct::cuda {

// Of the box around the segment's rows: no two are further apart.
template <class T>
DECOCT_DEVICE double box_diameter(const Problem<T>& p, const Transport<T>& t, int segment, double* partial) {
  const SegmentPlan& s = p.segments[segment];
  double square = 0;
  for (int d = thread_index(); d < p.dim; d += kThreads) {
    T least = INFINITY, most = -INFINITY;
    for (int k = s.first_chunk; k < s.first_chunk + s.chunks; ++k) {
      const T low = t.boxes[(int64_t)2 * k * p.dim + d], high = t.boxes[((int64_t)2 * k + 1) * p.dim + d];
      least = low < least ? low : least;
      most = high > most ? high : most;
    }
    const double side = (double)most - (double)least;
    square += side * side;
  }
  return p.states[segment].spread * ::sqrt(block_sum(square, partial));
}

// Potentials of partial transport come with the multiplier, without which none is above 0 and the largest is
// 0.
template <class T>
DECOCT_DEVICE double given_multiplier(const SegmentPlan& s, const Transport<T>& t, double* partial) {
  const T* given = t.out[0][0] + first_row(s, 1);
  double most = -INFINITY;
  for (int i = thread_index(); i < s.n; i += kThreads)
    most = (double)given[i] > most ? (double)given[i] : most;
  return block_most(most, partial);
}

template <class T>
DECOCT_DEVICE void first_states(const Problem<T>& p, const Transport<T>& t, int segment, double diameter,
                                double shift) {
  SegmentState<T>& own = p.states[segment];
  double eps = t.diameter;
  if (!(eps > 0)) {
    double most = 0;  // of the labels' costs
    for (int l = 0; l < t.labels && t.label_cost; ++l)
      for (int k = 0; k < t.labels; ++k) {
        const double cost = ::fabs(label_cost(t, l, k));
        most = cost > most ? cost : most;
      }
    eps = (t.squared ? diameter * diameter : diameter) + most;
    if (eps == 0) eps = t.blur;  // all rows are one
  }
  for (int kind = 0; kind < kTermKinds; ++kind) {
    TransportState state = first_state(t, eps);
    state.shift = shift;
    if (own.broken) state.pass = Pass::done;
    t.states[segment * kTermKinds + kind] = state;
    // A symmetric term is half of what it is with itself, and its derivative by a row counts it twice.
    t.coefficients[segment * kTermKinds + kind] = kind == 1 ? 1.0 : 0.5;
    t.shifts[segment * kTermKinds + kind] = 0;
  }
  set_constants(own.constants, p.kernel, t.length, own.spread * own.spread, p.dim);
}

template <class T>
DECOCT_KERNEL box_kernel(Problem<T> p, Transport<T> t) {
  Shared shared;
  double* partial = shared.take<double>(kWarps);
  int* arrival = shared.take<int>(1);
  const Chunk chunk = p.chunks[block_index()];
  const SegmentPlan s = p.segments[chunk.segment];
  const Side<T>& side = side_of(p, chunk.on_x);
  T* box = t.boxes + (int64_t)2 * block_index() * p.dim;
  for (int d = thread_index(); d < p.dim; d += kThreads) {
    T least = INFINITY, most = -INFINITY;
    for (int i = chunk.row_begin; i < chunk.row_end; ++i) {
      const T v = read_packed(p, side.points, (first_row(s, chunk.on_x) + i) * p.stride + d);
      least = v < least ? v : least;
      most = v > most ? v : most;
    }
    box[d] = least;
    box[p.dim + d] = most;
  }
  if (!last_to_arrive(t.box_tickets + chunk.segment, s.chunks, arrival)) return;
  const double diameter = box_diameter(p, t, chunk.segment, partial);
  const double shift = t.warm && t.mass > 0 ? given_multiplier(s, t, partial) : 0;
  if (thread_index() == 0) first_states(p, t, chunk.segment, diameter, shift);
}

template <class T>
DECOCT_KERNEL begin_kernel(Problem<T> p, Transport<T> t) {
  const Chunk chunk = p.chunks[block_index()];
  const SegmentPlan s = p.segments[chunk.segment];
  if (s.n == 0 || s.m == 0) return;
  for (int self = 0; self < 2; ++self) {
    Term term{};
    term.segment = chunk.segment;
    term.rows_x = chunk.on_x;
    term.columns_x = self ? chunk.on_x : !chunk.on_x;
    term.kind = !self ? 1 : chunk.on_x ? 0 : 2;
    if (!(t.given_terms >> term.kind & 1)) continue;
    const TermSide<T> side = side_of_term(p, t, term, true, 0);
    const T* given = t.out[!chunk.on_x][self] + side.first;
    const TransportState& state = state_of(t, term);
    const double eps = state.eps, shift = chunk.on_x ? state.shift : 0.0;
    for (int i = chunk.row_begin + thread_index(); i < chunk.row_end; i += kThreads) {
      const double potential = t.warm ? (double)given[i] - shift : 0.0;
      side.old[i] = potential;
      set_row_bias(side, i, potential, eps);
      set_column_bias(t, side, i, potential, eps);
    }
  }
}

// Sums of one row of a step, from all slabs that have some of it.
template <class T>
DECOCT_DEVICE double sum_of_row(const Transport<T>& t, const Term& term, bool on_rows, int i) {
  const bool symmetric = term.rows_x == term.columns_x;
  double sum = 0;
  if (on_rows)
    for (int k = 0; k < term.row_slabs; ++k) sum += t.sums[term.row_sums + (int64_t)k * term.rows + i];
  if (!on_rows || symmetric)
    for (int k = 0; k < term.column_slabs; ++k)
      sum += t.sums[term.column_sums + (int64_t)k * term.columns + i];
  return sum;
}

// StepSums of a chunk, or of all chunks of one side of a term, to all threads.
DECOCT_DEVICE StepSums add_up(const StepSums& own, double* partial) {
  StepSums total;
  total.missed = block_sum(own.missed, partial);
  total.mass = block_sum(own.mass, partial);
  total.plan = block_sum(own.plan, partial);
  total.value = block_sum(own.value, partial);
  return total;
}

// Of the next potential. The derivative of the last step goes by the potentials that it started from.
template <class T>
DECOCT_DEVICE void set_biases(const Transport<T>& t, const TransportState& state, const TermSide<T>& side,
                              int i, double eps) {
  set_row_bias(side, i, side.next[i], eps);
  if (state.pass != Pass::whole) set_column_bias(t, side, i, side.next[i], eps);
}

template <class T>
DECOCT_KERNEL step_kernel(Problem<T> p, Transport<T> t, int first_chunk, int left) {
  Shared shared;
  double* partial = shared.take<double>(kWarps);
  double* sums = shared.take<double>(kThreads);
  double* logs = shared.take<double>(kThreads);
  int* arrival = shared.take<int>(1);
  const StepChunk chunk = t.steps[first_chunk + block_index()];
  const Term term = t.terms[chunk.term];
  const TransportState state = state_of(t, term);
  if (state.pass == Pass::done) return;
  const TermSide<T> side = side_of_term(p, t, term, chunk.on_rows, state.parity);
  const TermSide<T> other = side_of_term(p, t, term, !chunk.on_rows, state.parity);
  const int i = chunk.begin + thread_index();
  const bool inside = i < chunk.end;
  const double sum = inside ? sum_of_row(t, term, chunk.on_rows, i) : 1.0;
  sums[thread_index()] = sum;
  logs[thread_index()] = ::log(sum);
  sync_block();
  const double unit = cost_unit(t, p.states[term.segment].spread);
  for (int row = warp_index(); row < chunk.end - chunk.begin; row += kWarps) {
    if (in_range<T>(sums[row])) continue;
    LogSum total;
    for (int j = 0; j < other.rows; ++j) {
      double square;
      total.add(exact_exponent(p, t, side, other, unit, state.eps, chunk.begin + row, j, square),
                (double)other.side->weights[other.first + j]);
    }
    sync_warp();
    if (lane_index() != 0) continue;
    logs[row] = total.value() + (side.old[chunk.begin + row] + state.shift) / state.eps;
    sums[row] = ::exp(logs[row]);
  }
  sync_block();

  TransportState next = state;
  advance(t, next, 0, left);  // the next eps depends on no marginal
  StepSums own{};
  if (inside) {
    side.next[i] = step_row(t, state, side.reach, side.old[i], sums[thread_index()], logs[thread_index()],
                            (double)side.side->weights[side.first + i], own);
    if (!(t.mass > 0)) set_biases(t, state, side, i, next.eps);
  }
  own = add_up(own, partial);
  double* parts = t.step_partials + (int64_t)(first_chunk + block_index()) * kStepSums;
  if (thread_index() == 0) {
    parts[0] = own.missed;
    parts[1] = own.mass;
    parts[2] = own.value;
  }
  if (!last_to_arrive(t.term_tickets + chunk.term, term.chunks, arrival)) return;

  StepSums of_rows{}, of_columns{};
  const int64_t before = term.first_chunk;
  for (int k = thread_index(); k < term.chunks; k += kThreads) {
    const double* from = t.step_partials + (before + k) * kStepSums;
    const StepSums part{from[0], from[1], 0, from[2]};
    const bool on_rows = t.steps[before + k].on_rows;
    of_rows.add_if(on_rows, part);
    of_columns.add_if(!on_rows, part);
  }
  double shift = 0;
  if (t.mass > 0) {
    const TermSide<T> rows = side_of_term(p, t, term, true, state.parity);
    const TermSide<T> columns = side_of_term(p, t, term, false, state.parity);
    shift = step_partial(t, state, partial_side(rows), partial_side(columns), of_rows, of_columns, partial);
    for (int k = thread_index(); k < rows.rows; k += kThreads) set_biases(t, state, rows, k, next.eps);
    for (int k = thread_index(); k < columns.rows; k += kThreads) set_biases(t, state, columns, k, next.eps);
  }
  of_rows = add_up(of_rows, partial);
  of_columns = add_up(of_columns, partial);
  if (thread_index() != 0) return;
  next = state;
  end_pass(t, term, next, of_rows, of_columns, shift, left);
  next.parity = 1 - state.parity;
  if (next.pass == Pass::done)
    t.shifts[term.segment * kTermKinds + term.kind] = next.shift * (kLog2e / next.eps);
  state_of(t, term) = next;
  atomic_add(t.term_tickets + chunk.term, -term.chunks);
}

}  // namespace decoct::cuda
