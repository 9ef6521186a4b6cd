// Sums over the steps of a group and what is made of them. Included inside one instruction set's translation
// unit.
#pragma once
#include "norm_plane.h"

namespace decoct {
namespace DECOCT_ISA {

constexpr int64_t kStepsInFloat = 512;  // sums go on in double after so many vectors

// One sum over a plane, or over each lane.
template <class T, bool Last>
struct Totals {
  double v[Last ? width<T> : 1];

  void add(vec<T> sums) {
    if (!Last) v[0] += (double)sum_lanes<T>(sums);
    for (int k = 0; Last && k < width<T>; ++k) v[k] += (double)sums[k];
  }
  vec<T> rounded() const {
    if (!Last) return splat((T)v[0]);
    T values[width<T>];
    for (int k = 0; k < width<T>; ++k) values[k] = (T)v[Last ? k : 0];
    return load(values);
  }
};

// term(step, lanes, sums) adds a step's numbers to sums; totals receive what all steps add up to.
template <class T, bool Last, int Sums, class Term>
DECOCT_INLINE void sum_steps(const Extent& extent, int64_t begin, int64_t end,
                             Totals<T, Last> (&totals)[Sums], Term term) {
  constexpr int kChains = Sums <= 2 ? 4 : 2;  // in flight: an addition takes four cycles
  vec<T> sums[kChains][Sums] = {};
  const int64_t whole = end < extent.full ? end : extent.full;
  int64_t step = begin;
  for (; step + kChains <= whole; step += kChains)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) term(step + c, AllLanes{}, sums[c]);
  for_steps(extent, step, end, [&](int64_t k, auto lanes) { term(k, lanes, sums[0]); });
  for (int s = 0; s < Sums; ++s) {
    vec<T> sum = sums[0][s] + sums[1][s];
    if constexpr (kChains == 4) sum += sums[2][s] + sums[3][s];
    totals[s].add(sum);
  }
}
template <class T, bool Last, int Sums, class Term>
DECOCT_INLINE void sum_steps(const Extent& extent, Totals<T, Last> (&totals)[Sums], Term term) {
  for (int64_t begin = 0; begin < extent.steps(); begin += kStepsInFloat) {
    const int64_t end = begin + kStepsInFloat < extent.steps() ? begin + kStepsInFloat : extent.steps();
    sum_steps<T, Last>(extent, begin, end, totals, term);
  }
}

// 0 for a negative number, NaN for NaN.
DECOCT_INLINE double at_least_zero(double value) {
  return value < 0 ? 0 : value;
}

// Mean and sum of squares about it; returns the number of elements of each. Piece by piece: the mean, then,
// out of the cache, squares about it, whose sum is exact to the second order in what the mean is off; the
// pieces are put together by the formula of Chan, Golub and LeVeque.
template <class T, bool Last>
static int64_t moments(Steps<const T> x, const Extent& extent, Totals<T, Last>& mean,
                       Totals<T, Last>& square) {
  constexpr int kTotals = Last ? width<T> : 1;
  int64_t before = 0;
  for (int64_t begin = 0; begin < extent.steps(); begin += kStepsInFloat) {
    const int64_t end = begin + kStepsInFloat < extent.steps() ? begin + kStepsInFloat : extent.steps();
    const int64_t whole = end < extent.full ? end : extent.full;
    const int64_t count = Last ? end - begin : (whole - begin) * width<T> + (end > whole ? extent.rest : 0);
    Totals<T, Last> sum[1] = {}, about[2] = {};
    sum_steps<T, Last>(extent, begin, end, sum, [&](int64_t k, auto lanes, vec<T>(&to)[1]) {
      to[0] += load(x.at(k), lanes, vec<T>{});
    });
    const double inverse = 1 / (double)count;
    Totals<T, Last> middle;
    for (int k = 0; k < kTotals; ++k) middle.v[k] = sum[0].v[k] * inverse;
    const vec<T> centre = middle.rounded();
    sum_steps<T, Last>(extent, begin, end, about, [&](int64_t k, auto lanes, vec<T>(&to)[2]) {
      const vec<T> difference = load(x.at(k), lanes, centre) - centre;
      to[0] += difference;
      to[1] += difference * difference;
    });
    for (int k = 0; k < kTotals; ++k) {
      const double off = about[0].v[k] * inverse, own_mean = (double)(T)middle.v[k] + off;
      const double own_square = at_least_zero(about[1].v[k] - off * about[0].v[k]);
      if (before == 0) {
        mean.v[k] = own_mean;
        square.v[k] = own_square;
        continue;
      }
      const double apart = own_mean - mean.v[k], share = (double)count / (double)(before + count);
      mean.v[k] += apart * share;
      square.v[k] += own_square + apart * apart * share * (double)before;
    }
    before += count;
  }
  return before;
}

// A channel's normalisation, affine map and ReLU; floor NaN: no ReLU. Where ReLU is on is decided by the same
// operations in every pass.
template <class T>
struct Activation {
  vec<T> centre, factor, weight, bias;
  T floor;

  DECOCT_INLINE_MEMBER vec<T> hat(vec<T> x) const { return (x - centre) * factor; }
  DECOCT_INLINE_MEMBER vec<T> value(vec<T> x) const { return at_least(hat(x) * weight + bias, floor); }
  DECOCT_INLINE_MEMBER vec<T> kept(vec<T> h, vec<T> gradient) const {
    return h * weight + bias <= splat(floor) ? vec<T>{} : gradient;
  }
};

// g by_g + t by_t + h by_h + constant.
template <class T>
struct Linear {
  vec<T> by_g, by_t, by_h, constant;

  DECOCT_INLINE_MEMBER vec<T> of(vec<T> g, vec<T> t, vec<T> h) const {
    return g * by_g + (t * by_t + (h * by_h + constant));
  }
};

// The means of a group that its second derivatives are made of: t stands for the tangent of x, u for that of
// the weight w.
template <class T, bool Last>
struct Means {
  Totals<T, Last> wg, wgh, t, th, twg, ug, ugh;

  // sums of g, g h, t, t h and t g over one of its channels; shares: 1, w and u over the group's numbers.
  void add(int64_t k, const double (&sums)[5], double w, double u, double one) {
    wg.v[k] += w * sums[0];
    wgh.v[k] += w * sums[1];
    t.v[k] += one * sums[2];
    th.v[k] += one * sums[3];
    twg.v[k] += w * sums[4];
    ug.v[k] += u * sums[0];
    ugh.v[k] += u * sums[1];
  }
  double by_hat(int64_t k, double f) const {
    return -f * ugh.v[k] - f * f * (twg.v[k] - t.v[k] * wg.v[k] - 3 * th.v[k] * wgh.v[k]);
  }
  double constant(int64_t k, double f) const {
    return -f * ug.v[k] + f * f * (wgh.v[k] * t.v[k] + th.v[k] * wg.v[k]);
  }
};

// Averages of windows of channels-last pixels, of which value(pixel) is a vector.
template <class T, class Value>
DECOCT_INLINE void pool_each(const NormShape& s, Steps<T> to, Value value) {
  const T scale = T(1) / (T)(s.pool_height * s.pool_width);
  for (int64_t i = 0; i < s.pooled_height(); ++i)
    for (int64_t j = 0; j < s.pooled_width(); ++j) {
      const int64_t first = i * s.pool_height * s.width + j * s.pool_width;
      vec<T> sum{};
      for (int64_t a = 0; a < s.pool_height; ++a)
        for (int64_t b = 0; b < s.pool_width; ++b) sum += value(first + a * s.width + b);
      store(to.at(i * s.pooled_width() + j), sum * scale);
    }
}
template <class T>
static void pool_pixels(const NormShape& s, const T* from, Steps<T> to) {
  pool_each(s, to, [&](int64_t pixel) { return load(from + pixel * width<T>); });
}
template <class T>
static void spread_pixels(const NormShape& s, Steps<const T> from, T* to) {
  const T scale = T(1) / (T)(s.pool_height * s.pool_width);
  for (int64_t r = 0; r < s.height; ++r)
    for (int64_t c = 0; c < s.width; ++c) {
      const int64_t i = r / s.pool_height, j = c / s.pool_width;
      const bool inside = i < s.pooled_height() && j < s.pooled_width();
      store(to + (r * s.width + c) * width<T>,
            inside ? load(from.at(i * s.pooled_width() + j)) * scale : vec<T>{});
    }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
