// Characteristic means by naive double sums, and their inputs as the engines take them.
#pragma once
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/interface.h"

namespace characteristic_case {

using namespace decoct;

struct Setup {
  std::string name;
  std::vector<int> counts;  // rows of each segment
  int frequencies, dim;

  int64_t rows() const {
    int64_t total = 0;
    for (int count : counts) total += count;
    return total;
  }
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> ends{0};
    for (int count : counts) ends.push_back(ends.back() + count);
    return ends;
  }
};

// Numbers of a matrix, and their bytes in a type with gaps of NaN between the rows; all types hold them
// exactly.
struct Numbers {
  int64_t rows, columns, stride;
  DType type;
  std::vector<double> values;
  std::vector<char> bytes;

  Numbers(int64_t n, int64_t c, int64_t gap, DType t, double scale, unsigned seed)
      : rows(n), columns(c), stride(c + gap), type(t) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const int64_t size = t == DType::float64 ? 8 : t == DType::float32 ? 4 : 2;
    bytes.assign((size_t)(n * stride * size), (char)0xff);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t d = 0; d < c; ++d) {
        const float drawn = (float)(scale * normal(random));
        uint32_t bits;
        std::memcpy(&bits, &drawn, 4);
        bits &= 0xffff0000u;
        float kept;
        std::memcpy(&kept, &bits, 4);
        values.push_back(kept);
        const double wide = kept;
        const uint16_t half = (uint16_t)(bits >> 16);
        char* to = bytes.data() + (i * stride + d) * size;
        std::memcpy(to,
                    size == 8   ? (const void*)&wide
                    : size == 4 ? (const void*)&kept
                                : (const void*)&half,
                    size);
      }
  }
  Matrix matrix() { return {bytes.empty() ? nullptr : bytes.data(), rows, columns, stride, type}; }
  const double* row(int64_t i) const { return values.data() + i * columns; }
};

// Inputs of all three ops; `type` of what is not rows.
struct Inputs {
  Setup setup;
  Numbers x, f, w, bar_cosine, bar_sine, u, v, h;

  Inputs(const Setup& s, DType rows, DType type, double scale = 1)
      : setup(s),
        x(s.rows(), s.dim, 3, rows, scale / std::sqrt((double)s.dim), 1),
        f(s.frequencies, s.dim, 1, rows, scale, 2),
        w(s.rows(), 1, 0, type, 1, 3),
        bar_cosine((int64_t)s.counts.size(), s.frequencies, 2, type, 1, 4),
        bar_sine((int64_t)s.counts.size(), s.frequencies, 0, type, 1, 5),
        u(s.rows(), s.dim, 0, type, 1 / std::sqrt((double)s.dim), 6),
        v(s.frequencies, s.dim, 5, type, 1 / std::sqrt((double)s.dim), 7),
        h(s.rows(), 1, 0, type, 1, 8) {}
};

// A result and the sum of the sizes of its terms, which its error is measured by.
struct Result {
  std::vector<double> value, size;
  explicit Result(int64_t count) : value((size_t)count), size((size_t)count) {}
  void add(int64_t at, double term, double largest) {
    value[(size_t)at] += term;
    size[(size_t)at] += std::fabs(largest);
  }
};

struct Exact {
  Result cosine, sine, x, f, w;
};

inline double dot(const double* a, const double* b, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; ++d) sum += a[d] * b[d];
  return sum;
}

// Sizes are of terms with sines and cosines of 1 and sums of products grown by the products' own error.
inline Exact exact(const Inputs& in, CharacteristicOp op) {
  const int64_t rows = in.x.rows, columns = in.f.rows, dim = in.x.columns;
  const int64_t segments = (int64_t)in.setup.counts.size();
  Exact e{Result(segments * columns), Result(segments * columns), Result(rows * dim), Result(columns * dim),
          Result(rows)};
  const std::vector<int64_t> ends = in.setup.offsets();
  for (int64_t s = 0; s < segments; ++s)
    for (int64_t i = ends[(size_t)s]; i < ends[(size_t)s + 1]; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const double *x = in.x.row(i), *f = in.f.row(j), t = dot(x, f, dim);
        double lengths = 1;  // of the error of t
        for (int64_t d = 0; d < dim; ++d) lengths += std::fabs(x[d] * f[d]);
        const double c = std::cos(t), q = std::sin(t), w = in.w.values[(size_t)i];
        const int64_t at = s * columns + j;
        if (op == CharacteristicOp::value) {
          e.cosine.add(at, w * c, w * lengths);
          e.sine.add(at, w * q, w * lengths);
          continue;
        }
        const double C = in.bar_cosine.row(s)[j], S = in.bar_sine.row(s)[j];
        const double slope = S * c - C * q, level = C * c + S * q;
        const double bars = (std::fabs(C) + std::fabs(S)) * lengths;
        if (op == CharacteristicOp::grad) {
          e.w.add(i, level, bars);
          for (int64_t d = 0; d < dim; ++d) {
            e.x.add(i * dim + d, w * slope * f[d], w * bars * f[d]);
            e.f.add(j * dim + d, w * slope * x[d], w * bars * x[d]);
          }
          continue;
        }
        const double *u = in.u.row(i), *v = in.v.row(j), h = in.h.values[(size_t)i];
        const double tau = dot(u, f, dim) + dot(x, v, dim);
        double moved = 0;
        for (int64_t d = 0; d < dim; ++d) moved += std::fabs(u[d] * f[d]) + std::fabs(x[d] * v[d]);
        const double both = (std::fabs(h) + std::fabs(w) * moved) * lengths;
        e.cosine.add(at, h * c - w * tau * q, both);
        e.sine.add(at, h * q + w * tau * c, both);
        e.w.add(i, slope * tau, bars * moved);
        const double g = h * slope - w * tau * level, p = w * slope;
        const double largest = (std::fabs(C) + std::fabs(S)) * both;
        for (int64_t d = 0; d < dim; ++d) {
          e.x.add(i * dim + d, g * f[d] + p * v[d], std::fabs(largest * f[d]) + std::fabs(w * bars * v[d]));
          e.f.add(j * dim + d, g * x[d] + p * u[d], std::fabs(largest * x[d]) + std::fabs(w * bars * u[d]));
        }
      }
  return e;
}

inline CharacteristicArguments arguments(Inputs& in, CharacteristicOp op, const std::vector<int64_t>& ends) {
  CharacteristicArguments a{};
  a.op = op;
  a.x = in.x.matrix();
  a.frequencies = in.f.matrix();
  a.weights = in.w.matrix();
  a.offsets = ends.data();
  a.segments = (int64_t)in.setup.counts.size();
  if (op == CharacteristicOp::value) return a;
  a.bar_cosine = in.bar_cosine.matrix();
  a.bar_sine = in.bar_sine.matrix();
  if (op == CharacteristicOp::grad) return a;
  a.tangent_x = in.u.matrix();
  a.tangent_frequencies = in.v.matrix();
  a.tangent_weights = in.h.matrix();
  return a;
}

// Segments that end before, at and after the edges of tiles, empty ones among them; one row, one column.
inline std::vector<Setup> all_setups() {
  return {{"ragged", {0, 1, 31, 32, 33, 0, 0, 5, 64, 2, 1, 1}, 71, 17},
          {"one", {1}, 1, 1},
          {"narrow", {65, 33}, 130, 3},
          {"wide", {3, 10}, 37, 293},
          {"even", {32, 32}, 64, 64}};
}

}  // namespace characteristic_case
