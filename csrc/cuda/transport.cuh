// Entropic optimal transport by Sinkhorn's iteration, for every segment and term:
//   OT = min_P <P, C> + eps KL(P | a b^T) + rho KL(P 1 | a) + rho' KL(P^T 1 | b),  C = |x - y|^2 / 2 or |x -
//   y|
//
// With S_ij = exp((f_i + g_j - C_ij) / eps), the sums R_i = sum_j b_j S_ij and Q_j = sum_i a_i S_ij give both
// half-steps, T(g)_i = f_i - eps log R_i and T(f)_j = g_j - eps log Q_j, from one product and one exponential
// a pair and without maxima. A sum that is out of range is made again from logarithms by a warp.
//
// Both potentials start at eps = diameter^p, eps falls by scaling^p to blur^p, half of the old potentials is
// kept, and the last step is taken whole. Partial transport of a mass has f, g <= 0 and a multiplier h of
// that mass, P_ij = a_i b_j exp((f_i + g_j + h - C_ij) / eps).
//
// The host cannot see where a term is: it launches as many passes as there may be, and what a term does in
// each lies in its TransportState. This file has what the kernels share: transport_tile.cuh makes sums (or
// costs), transport_steps.cuh steps, transport_kept.cuh does both in one block, transport_end.cuh ends.
#pragma once
#include "near.cuh"

namespace decoct::cuda {

constexpr double kLog2e = 1.4426950408889634074;

// A call, beside its Problem. Arrays of pairs: of x, of y; of pairs of pairs: of cross and of self terms.
template <class T>
struct Transport {
  const Term* terms;
  const TransportTask* tasks;
  const StepChunk* steps;
  TransportState* states;  // (segments, kTermKinds)
  double *sums, *step_partials, *shifts, *coefficients;
  int32_t *term_tickets, *box_tickets;
  T *boxes, *kept;
  double* potentials[2][2];  // (2, rows)
  T *row_bias[2][2], *column_bias[2][2];
  int64_t rows[2];
  const double* label_cost;
  int64_t label_stride;
  int32_t labels, segments, chunks;  // labels: 1 where there are none; chunks: of preparation
  int32_t squared, warm, max_iterations, given_terms, need;
  double blur, scaling, diameter, reach[2];  // to the power p
  double length;                             // blur itself
  double mass, tolerance;
  T* out[2][2];  // potentials of the caller
  T* gradient[2];
  int64_t gradient_stride[2];
  double *value, *error;
  int64_t* iterations;
};

// One side of a term; of a symmetric one rows and columns are the same.
template <class T>
struct TermSide {
  const Side<T>* side;
  int64_t first;
  int rows;
  double *old, *next;  // potentials before and after a step
  T *row_bias, *column_bias;
  const int64_t* labels;
  double reach;
};

template <class T>
DECOCT_DEVICE TermSide<T> side_of_term(const Problem<T>& p, const Transport<T>& t, const Term& term,
                                       bool on_rows, int parity) {
  const int on_x = on_rows ? term.rows_x : term.columns_x, index = !on_x,
            self = term.rows_x == term.columns_x;
  const int64_t first = first_row(p.segments[term.segment], on_x);
  const Side<T>& side = side_of(p, on_x);
  double* potentials = t.potentials[index][self] + first;
  return {&side,
          first,
          on_rows ? term.rows : term.columns,
          potentials + parity * t.rows[index],
          potentials + (1 - parity) * t.rows[index],
          t.row_bias[index][self] + first,
          t.column_bias[index][self] + first,
          side.labels ? side.labels + first : nullptr,
          t.reach[index]};
}
template <class T>
DECOCT_DEVICE TransportState& state_of(const Transport<T>& t, const Term& term) {
  return t.states[term.segment * kTermKinds + term.kind];
}
template <class T>
DECOCT_DEVICE double label_cost(const Transport<T>& t, int64_t row, int64_t column) {
  return t.label_cost[row * t.label_stride + column];
}

// The cost of packed rows is so much times their squared distance, or distance.
template <class T>
DECOCT_DEVICE double cost_unit(const Transport<T>& t, double spread) {
  return t.squared ? spread * spread / 2 : spread;
}

template <class T>
DECOCT_DEVICE bool in_range(double sum) {
  constexpr double limit = sizeof(T) == 4 ? 1e28 : 1e280;
  return sum > 1 / limit && sum < limit;
}

template <class T>
DECOCT_DEVICE TransportState first_state(const Transport<T>& t, double diameter) {
  TransportState state{};
  state.eps = t.warm ? t.blur : diameter;
  state.pass = t.warm ? Pass::last : Pass::start;
  return state;
}

// What follows a pass that missed so much of the marginals. `left`: passes that the host launches, this one
// included. Two passes end every term, and room is left for them.
template <class T>
DECOCT_DEVICE void advance(const Transport<T>& t, TransportState& state, double missed, int left) {
  ++state.iterations;
  state.missed = missed;
  const int more = t.max_iterations - state.iterations;
  switch (state.pass) {
    case Pass::start:
      state.pass = Pass::settle;
      return;
    case Pass::settle:
    case Pass::anneal:
      if (state.pass == Pass::anneal) state.eps *= t.scaling;
      state.pass = state.eps > t.blur && more > 2 && left > 3 ? Pass::anneal : Pass::last;
      if (state.pass == Pass::last) state.eps = t.blur;
      return;
    case Pass::last:
    case Pass::repeat:
      state.pass =
          t.tolerance > 0 && missed > t.tolerance && more > 1 && left > 2 ? Pass::repeat : Pass::whole;
      return;
    default:
      state.pass = Pass::done;
  }
}

DECOCT_DEVICE bool takes_all(Pass pass) {
  return pass == Pass::start || pass == Pass::whole;
}

// A step's sums over the rows of one side.
struct StepSums {
  double missed, mass, plan, value;

  // No choice between two of them by reference, which would lie in memory.
  DECOCT_DEVICE void add_if(bool wanted, const StepSums& o) {
    missed += wanted ? o.missed : 0.0;
    mass += wanted ? o.mass : 0.0;
    plan += wanted ? o.plan : 0.0;
    value += wanted ? o.value : 0.0;
  }
};

// T(g) from a row's sum, damped where the marginal may be missed, averaged with the old potential unless all
// of the step is taken. Returns the next potential; of partial transport T(g) alone, without the multiplier.
template <class T>
DECOCT_DEVICE double step_row(const Transport<T>& t, const TransportState& state, double reach, double old,
                              double sum, double log_sum, double weight, StepSums& sums) {
  if (t.mass > 0) return old + state.shift - state.eps * log_sum;
  double next = (old - state.eps * log_sum) / (1 + state.eps / reach);
  const bool balanced = reach == (double)INFINITY;
  const double kept = balanced ? 1 : ::exp(log_sum + (next - old) / state.eps);
  sums.missed += weight * ::fabs(sum - kept);
  sums.mass += weight;
  if (!takes_all(state.pass)) next = 0.5 * old + 0.5 * next;
  if (weight != 0)
    sums.value +=
        weight * (reach == (double)INFINITY ? next : -(reach + state.eps / 2) * ::expm1(-next / reach));
  return next;
}

// The larger one; NaN where either is.
DECOCT_DEVICE double larger(double p, double q) {
  return p > q || p != p ? p : q;
}

// By what share of all mass a marginal is missed.
DECOCT_DEVICE double missed_share(const StepSums& sums) {
  return sums.mass > 0 ? sums.missed / sums.mass : sums.mass == 0 ? 0 : ::nan("");
}

template <class T>
DECOCT_DEVICE bool keeps_marginals(const Transport<T>& t) {
  return t.reach[0] == (double)INFINITY && t.reach[1] == (double)INFINITY && !(t.mass > 0);
}

// The end of a pass from the sums of its sides; those over columns are zero where the term is symmetric.
// `shift`: of partial transport, the next multiplier.
template <class T>
DECOCT_DEVICE void end_pass(const Transport<T>& t, const Term& term, TransportState& state,
                            const StepSums& rows, const StepSums& columns, double shift, int left) {
  double missed = larger(missed_share(rows), missed_share(columns));
  if (t.mass > 0) missed = larger(missed, ::fabs(rows.plan / t.mass - 1));
  state.shift = shift;
  state.value = rows.value + columns.value + (t.mass > 0 ? t.mass * shift : 0.0);
  if (term.rows_x != term.columns_x && keeps_marginals(t)) {
    const double mass = rows.mass + columns.mass, apart = rows.value - columns.value;
    state.centre = mass == 0 ? 0 : (term.rows_x ? apart : -apart) / mass;
  }
  advance(t, state, missed, left);
}

// Biases of a row from its potentials, for all labels of the rows that it may meet as a column.
template <class T>
DECOCT_DEVICE void set_row_bias(const TermSide<T>& side, int i, double potential, double eps) {
  side.row_bias[i] = (T)(potential * (kLog2e / eps));
}
template <class T>
DECOCT_DEVICE void set_column_bias(const Transport<T>& t, const TermSide<T>& side, int i, double potential,
                                   double eps) {
  for (int l = 0; l < t.labels; ++l) {
    const double cost = side.labels ? label_cost(t, l, side.labels[i]) : 0.0;
    side.column_bias[l * side.side->bias_pitch + i] = (T)((potential - cost) * (kLog2e / eps));
  }
}

// log sum_k weight_k exp(t_k), one number at a time.
struct LogSum {
  double most = -INFINITY, sum = 0;

  DECOCT_DEVICE void add(double exponent, double weight) {
    if (!(weight > 0)) return;
    sum = exponent > most ? sum * ::exp(most - exponent) + weight : sum + weight * ::exp(exponent - most);
    most = exponent > most ? exponent : most;
  }
  // Those of all lanes.
  DECOCT_DEVICE void join_lanes() {
    for (int step = 16; step > 0; step /= 2) {
      const double other_most = shuffle_xor(most, step), other_sum = shuffle_xor(sum, step);
      const double both = other_most > most ? other_most : most;
      if (both == -(double)INFINITY) continue;
      sum = sum * ::exp(most - both) + other_sum * ::exp(other_most - both);
      most = both;
    }
  }
  DECOCT_DEVICE double value() const { return most + ::log(sum); }
};

// (g_j - C_ij) / eps from differences of packed rows, by a whole warp.
template <class T>
DECOCT_DEVICE double exact_exponent(const Problem<T>& p, const Transport<T>& t, const TermSide<T>& side,
                                    const TermSide<T>& other, double unit, double eps, int i, int j,
                                    double& square) {
  square = squared_distance(p, PairRows<T>{side.side->points, other.side->points, (side.first + i) * p.stride,
                                           (other.first + j) * p.stride});
  double cost = unit * (t.squared ? square : ::sqrt(square));
  if (side.labels) cost += label_cost(t, side.labels[i], other.labels[j]);
  return (other.old[j] - cost) / eps;
}

}  // namespace decoct::cuda
