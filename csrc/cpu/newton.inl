// Newton's step for few potentials. Of plans P_ij = a_i p_ij, sum_j p_ij = 1, whose potentials g have the
// marginal Q_j = sum_i P_ij where b_j is asked for,
//   eps dQ / dg = diag(Q) - H,      H_jl = sum_i a_i p_ij p_il,
// is singular along the potentials that are all alike, and positive definite with Q Q^T / sum Q added, which
// leaves the step without a part along them. It is factored as L L^T in double: k^3 / 3 operations.
#pragma once
#include <cstdint>

namespace decoct {
namespace DECOCT_ISA {

// In: H in the lower triangle of `system` (k, k), and `missed` = b - Q. Out: step / eps in `missed`. Points
// without mass are left alone. Returns whether the factors exist to `accuracy`, H's own: where every row goes
// to a single point, no marginal depends on a potential.
static bool newton_step(int64_t k, const double* mass, double accuracy, double* system, double* missed) {
  double all = 0;
  for (int64_t j = 0; j < k; ++j) all += mass[j];
  for (int64_t j = 0; j < k; ++j) {
    double* row = system + j * k;
    for (int64_t l = 0; l <= j; ++l) row[l] = mass[j] * mass[l] / all - row[l];
    row[j] += mass[j] == 0 ? 1 : mass[j];
  }
  for (int64_t j = 0; j < k; ++j) {
    double* row = system + j * k;
    const double least = accuracy * row[j];
    for (int64_t l = 0; l < j; ++l) {
      const double* other = system + l * k;
      for (int64_t i = 0; i < l; ++i) row[l] -= row[i] * other[i];
      row[l] /= other[l];
      row[j] -= row[l] * row[l];
    }
    if (!(row[j] > least)) return false;
    row[j] = __builtin_sqrt(row[j]);
  }
  for (int64_t j = 0; j < k; ++j) {
    for (int64_t l = 0; l < j; ++l) missed[j] -= system[j * k + l] * missed[l];
    missed[j] /= system[j * k + j];
  }
  for (int64_t j = k; j-- > 0;) {
    missed[j] /= system[j * k + j];
    for (int64_t l = 0; l < j; ++l) missed[l] -= system[j * k + l] * missed[j];
  }
  return true;
}

}  // namespace DECOCT_ISA
}  // namespace decoct
