// A step of partial transport: of a mass m, with f, g <= 0 and a multiplier h of that mass,
//   P_ij = a_i b_j exp((f_i + g_j + h - C_ij) / eps).
// For given g, the best f and h belong together. With T_i = -eps log sum_j b_j exp((g_j - C_ij) / eps) a row
// sends all it has or what h lets go, f_i = min(0, T_i - h), and h is where that is the mass:
//   sum_i a_i min(1, exp((h - T_i) / eps)) = m,
// or the largest T_i, where all rows together have less.
// The columns have such an h too, and the mean of both is taken. On its own, h would creep: where most rows
// send all they have, the few others must send twice as much before the mass moves by a little.
#pragma once
#include "transport.inl"

namespace decoct {
namespace DECOCT_ISA {

// What a step of one side found: by what share of all mass the marginal is missed, and the mass of the plan.
struct StepFound {
  double missed, plan;
};

template <class T>
struct PartialStep {
  const Transport<T>& t;

  // From T, which lies in `next`. Rows that would send more than they have are taken for full, h rises for
  // it, and so on: no row is taken back, so that this ends.
  double multiplier(const TransportSide<T>& side) const {
    const int64_t rows = side.cloud->rows;
    const double mass = t.a.mass;
    double h = -__builtin_inf();
    while (true) {
      vdouble full = {}, least = splat(__builtin_inf());
      for (int64_t i = 0; i < rows; i += width<double>) {
        const vdouble weight = load(side.weight + i), at = load(side.next + i);
        full += weight > 0 && at <= h ? weight : vdouble{};
        least = weight > 0 && at > h && at < least ? at : least;
      }
      double first = __builtin_inf();
      for (int l = 0; l < width<double>; ++l) first = least[l] < first ? least[l] : first;
      const double left = mass - sum_lanes<double>(full);
      if (!(left > 0)) return h;
      if (!(first < __builtin_inf())) return largest(side);
      vdouble rest = {};
      for (int64_t i = 0; i < rows; i += width<double>) {
        const vdouble weight = load(side.weight + i), at = load(side.next + i);
        const vdouble share = weight * exp2_of_any((first - at) * (kLog2e / t.eps));
        rest += weight > 0 && at > h ? share : vdouble{};
      }
      const double next = first + t.eps * __builtin_log(left / sum_lanes<double>(rest));
      if (!(next > h)) return h;
      h = next;
    }
  }

  static double largest(const TransportSide<T>& side) {
    double most = -__builtin_inf();
    for (int64_t i = 0; i < side.cloud->rows; ++i)
      if (side.weight[i] > 0 && side.next[i] > most) most = side.next[i];
    return most;
  }

  StepFound finish(const TransportSide<T>& side, double h, double old_share) const {
    const double rate = kLog2e / t.eps;
    vdouble missed = {}, mass = {}, plan = {};
    for (int64_t i = 0; i < side.cloud->rows; i += width<double>) {
      const vdouble weight = load(side.weight + i), old = load(side.potential + i), at = load(side.next + i);
      const vdouble next = -at_least(h - at, 0.0);
      const vdouble sum = exp2_of_any((old + t.shift - at) * rate);
      const vdouble error = sum - exp2_of_any((next + h - at) * rate);
      missed += weight == 0 ? vdouble{} : weight * (error > 0 ? error : -error);
      plan += weight == 0 ? vdouble{} : weight * sum;
      mass += weight;
      store(side.next + i, old * old_share + next * (1 - old_share));
    }
    return {share_of(missed, mass), sum_lanes<double>(plan)};
  }

  // Returns by what share a marginal or the mass is missed.
  static double run(Transport<T>& t, bool whole) {
    const PartialStep step{t};
    const double old_share = whole ? 0.0 : 0.5;
    const double of_rows = step.multiplier(t.rows), of_cols = step.multiplier(t.cols);
    const StepFound rows = step.finish(t.rows, of_rows, old_share),
                    cols = step.finish(t.cols, of_cols, old_share);
    t.next_shift = t.shift * old_share + (of_rows + of_cols) / 2 * (1 - old_share);
    return larger(larger(rows.missed, cols.missed), __builtin_fabs(rows.plan / t.a.mass - 1));
  }
};

}  // namespace DECOCT_ISA
}  // namespace decoct
