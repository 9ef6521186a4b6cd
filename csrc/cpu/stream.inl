// Small segments, each prepared by the one task that does all of it.
//
// Condensation compares many real rows, which need no derivative, with a few synthetic ones. Such an x is not
// kept: its rows pass through a buffer in the second-level cache, packed, multiplied and forgotten. Bytes:
// x is read once, or twice where the bandwidth comes from the data, and never written. The anchor that it is
// centred on is then no exact mean but that of a few rows; the bandwidth's mean is exact all the same.
#pragma once
#include "segment.inl"

namespace decoct {
namespace DECOCT_ISA {

template <class T>
static void anchor_at_mean(Segment<T>& s, const Kernel& kernel, double* sums) {
  std::memset(sums, 0, s.x.dim * sizeof(double));
  add_column_sums(s.x, 0, s.n, sums);
  add_column_sums(s.y, 0, s.m, sums);
  set_anchor(s, kernel, sums);
}

// The same with a few rows of x for all.
template <class T>
static void anchor_near_mean(Segment<T>& s, const Kernel& kernel, double* sums) {
  const int64_t samples = s.n < 16 ? s.n : 16;
  std::memset(sums, 0, s.x.dim * sizeof(double));
  for (int64_t k = 0; k < samples; ++k) add_column_sums(s.x, k * s.n / samples, k * s.n / samples + 1, sums);
  for (int64_t d = 0; d < s.x.dim; ++d) sums[d] *= (double)s.n / (double)samples;
  add_column_sums(s.y, 0, s.m, sums);
  set_anchor(s, kernel, sums);
}

template <class T>
static void prepare_whole(Segment<T>& s, const Kernel& kernel, bool from_data, double* sums,
                          double* bandwidth) {
  anchor_at_mean(s, kernel, sums);
  double norms = pack_chunk(s.x, 0, s.n, s.centre, s.spread);
  norms += pack_chunk(s.y, 0, s.m, s.centre, s.spread);
  calibrate(s, kernel, from_data, norms, bandwidth);
}

// sums += rows about the anchor, column by column, in the type A; returns the sum of their squares.
template <class A, class T>
static double add_moments(const Cloud<T>& c, const T* centre, A inverse_spread, A* sums) {
  return with_rows(c, [=](const auto* rows, auto widen) {
    double squares = 0;
    for (int64_t i = 0; i < c.rows; ++i, rows += c.source_stride)
      squares += sum_over<A>(c.dim, [=](int64_t d) {
        const A v = ((A)widen(rows[d]) - (A)centre[d]) * inverse_spread;
        sums[d] += v;
        return v * v;
      });
    return squares;
  });
}

// Sum of |z - mean|^2 / spread^2 over all rows: squares about the anchor, less the mean's distance from it.
template <class A, class T>
static double centred_squares(const Segment<T>& s, A* sums) {
  std::memset(sums, 0, s.x.dim * sizeof(A));
  const A inverse_spread = (A)(1 / s.spread);
  const double squares =
      add_moments(s.x, s.centre, inverse_spread, sums) + add_moments(s.y, s.centre, inverse_spread, sums);
  const double shift =
      sum_over<double>(s.x.dim, [=](int64_t d) { return (double)sums[d] * (double)sums[d]; });
  return squares - shift / (double)(s.n + s.m);
}

template <class T>
static void prepare_stream(Segment<T>& s, const Kernel& kernel, bool from_data, double* sums,
                           double* bandwidth) {
  anchor_near_mean(s, kernel, sums);
  double norms = from_data ? centred_squares(s, (T*)sums) : 0;
  // Squares overflow where the few rows missed one that is very far out.
  if (!(norms < __builtin_inf())) {
    anchor_at_mean(s, kernel, sums);
    norms = centred_squares(s, sums);
  }
  pack_chunk(s.y, 0, s.m, s.centre, s.spread);
  calibrate(s, kernel, from_data, norms, bandwidth);
}

// run(segment) for x a buffer at a time.
template <class T, class Run>
static void stream(const Segment<T>& s, Run run) {
  const int64_t step = stream_rows(s.x);
  Segment<T> part = s;
  for (int64_t i = 0; i < s.n; i += step) {
    part.n = part.x.rows = i + step < s.n ? step : s.n - i;
    pack_chunk(part.x, 0, part.n, s.centre, s.spread);
    run(part);
    part.x.source += step * s.x.source_stride * element_bytes(s.x.dtype);
    if (part.x.source_weights) part.x.source_weights += step;
    if (part.x.source_bias) part.x.source_bias += step;
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
