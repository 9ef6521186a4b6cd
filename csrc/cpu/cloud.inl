// One segment's rows of x or y made ready for the tiles: centred (translation-invariant kernels), widened to
// the compute type, with squared norms, weights padded by zeros, and, for clouds that serve as columns,
// transposed into panels. Bytes moved: each row is read twice (centre, pack) and written once or twice. The
// accumulators live here too.
#pragma once
#include "../kernel_profiles.h"
#include "gemm_tile.h"

namespace decoct {
namespace DECOCT_ISA {

template <class T>
constexpr int64_t kTileColumns = sizeof(T) == 4 ? 192 : 96;
constexpr int64_t kTileHeight = 96;  // rows of a tile: a multiple of every kTileRows
constexpr int64_t kSmallDim = 8;     // below it the gradient products run along the columns, not along D

constexpr double kLog2e = 1.4426950408889634074;

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Row stride of a scratch matrix: whole vectors, and never a multiple of 2 KiB, where eight rows fight for
// one set.
template <class T>
constexpr int64_t padded_stride(int64_t columns) {
  if (columns < kSmallDim) return columns;
  const int64_t stride = round_up(columns, width<T>);
  return stride * (int64_t)sizeof(T) % 2048 == 0 ? stride + width<T> : stride;
}

// Carves arrays out of the caller's workspace; with base == nullptr it only counts.
struct Arena {
  char* base;
  int64_t used = 0;
  template <class V>
  V* take(int64_t count) {
    V* p = base ? (V*)(base + used) : nullptr;
    used += round_up(count * (int64_t)sizeof(V), 64);
    return p;
  }
};

template <class T>
struct Cloud {
  const char* source;  // first row of the segment
  int64_t source_stride;
  DType dtype;
  const T *source_weights, *source_bias;
  T mean_weight;  // of a row where there are no weights
  int64_t rows, dim, stride;
  T *points, *norms, *weights, *panels;
  T* bias;       // of plans: log2 of what the exponential is multiplied by
  T* grad;       // (slabs, rows, stride): sum_j W_ij p_j
  double* wsum;  // (slabs, rows): sum_j W_ij
  double* ksum;  // (slabs, rows): sum_j c b_j k_ij
  int slabs;
  bool wants_grad, wants_weight;
};

// kept: rows that are in memory at a time.
template <class T>
static void cloud_layout(Cloud<T>& c, Arena& arena, bool as_columns, int64_t kept) {
  c.stride = padded_stride<T>(c.dim);
  c.mean_weight = T(1) / (T)c.rows;
  const int64_t padded = round_up(kept, kTileColumns<T>);
  c.points = arena.take<T>(kept * c.stride);
  c.norms = arena.take<T>(padded);
  c.weights = arena.take<T>(padded);
  c.bias = arena.take<T>(padded);
  c.panels = as_columns ? arena.take<T>(round_up(c.rows, panel<T>) * c.dim) : nullptr;
  const int64_t slabs = c.slabs;
  c.grad = c.wants_grad ? arena.take<T>(slabs * c.rows * c.stride) : nullptr;
  c.wsum = c.wants_grad ? arena.take<double>(slabs * c.rows) : nullptr;
  c.ksum = c.wants_weight ? arena.take<double>(slabs * c.rows) : nullptr;
}

DECOCT_INLINE int64_t element_bytes(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

DECOCT_INLINE float half_to_float(uint16_t h) {
  // Exponent and mantissa moved into place, then scaled by 2^112: exact for normal and subnormal halves
  // alike.
  uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
  if ((h & 0x7c00) == 0x7c00) bits += 0x70000000u;  // Inf, NaN: the exponent must end up all ones
  float f;
  std::memcpy(&f, &bits, 4);
  if ((h & 0x7c00) != 0x7c00) f *= 0x1p112f;
  return h & 0x8000 ? -f : f;
}

DECOCT_INLINE float bfloat_to_float(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// use(first row, function that widens one element to T): one copy of the code for each element type.
template <class T, class Use>
DECOCT_INLINE auto with_rows(const Cloud<T>& c, Use use) {
  switch (c.dtype) {
    case DType::float64:
      return use((const double*)c.source, [](double v) { return (T)v; });
    case DType::float16:
      return use((const uint16_t*)c.source, [](uint16_t v) { return (T)half_to_float(v); });
    case DType::bfloat16:
      return use((const uint16_t*)c.source, [](uint16_t v) { return (T)bfloat_to_float(v); });
    default:
      return use((const float*)c.source, [](float v) { return (T)v; });
  }
}

template <class T, class Use>
DECOCT_INLINE void for_row(const Cloud<T>& c, int64_t row, Use use) {
  with_rows(c, [&](const auto* rows, auto widen) {
    const auto* p = rows + row * c.source_stride;
    for (int64_t d = 0; d < c.dim; ++d) use(d, widen(p[d]));
  });
}

// A row to come, into the second-level cache: each is a new page to the processor's own prefetching.
template <class T>
DECOCT_INLINE void prefetch_row(const Cloud<T>& c, int64_t row) {
  const int64_t size = element_bytes(c.dtype);
  const char* p = c.source + row * c.source_stride * size;
  for (int64_t k = 0; k < c.dim * size; k += 64) __builtin_prefetch(p + k, 0, 2);
}

// Rows go four at a time, so that the sums are read and written a quarter as often.
template <class T>
static void add_column_sums(const Cloud<T>& c, int64_t begin, int64_t end, double* sums) {
  with_rows(c, [=](const auto* rows, auto widen) {
    const int64_t stride = c.source_stride;
    const auto* p = rows + begin * stride;
    int64_t left = end - begin;
    for (; left >= 4; left -= 4, p += 4 * stride)
      for (int64_t d = 0; d < c.dim; ++d)
        sums[d] += ((double)widen(p[d]) + (double)widen(p[d + stride])) +
                   ((double)widen(p[d + 2 * stride]) + (double)widen(p[d + 3 * stride]));
    for (; left > 0; --left, p += stride)
      for (int64_t d = 0; d < c.dim; ++d) sums[d] += (double)widen(p[d]);
  });
}

// sum_d term(d), in enough parts for vectors; each part is a sum of type A.
template <class A, class Term>
DECOCT_INLINE double sum_over(int64_t count, Term term) {
  constexpr int lanes = width<A> * 4;
  if (count < width<A>) {
    A sum = 0;
    for (int64_t d = 0; d < count; ++d) sum += term(d);
    return (double)sum;
  }
  A parts[lanes] = {};
  int64_t d = 0;
  for (; d + lanes <= count; d += lanes)
    for (int l = 0; l < lanes; ++l) parts[l] += term(d + l);
  for (int l = 0; d < count; ++d, ++l) parts[l] += term(d);
  for (int step = lanes / 2; step > 0; step /= 2)
    for (int l = 0; l < step; ++l) parts[l] += parts[l + step];
  return (double)parts[0];
}

// sum_d v(d)^2; in double only where T would overflow.
template <class T, class Value>
DECOCT_INLINE double sum_of_squares(int64_t count, Value value) {
  const double sum = sum_over<T>(count, [=](int64_t d) { return value(d) * value(d); });
  if (__builtin_expect(sum < __builtin_inf(), 1)) return sum;
  return sum_over<double>(count, [=](int64_t d) { return (double)value(d) * (double)value(d); });
}

template <class T>
static double squared_distance(const T* p, const T* q, int64_t dim) {
  return sum_over<double>(dim, [=](int64_t d) {
    const double difference = (double)p[d] - (double)q[d];
    return difference * difference;
  });
}

// A row that is not finite poisons whatever it meets, whichever of its coordinates that needs.
template <class T>
static double poison_row(T* p, int64_t dim, double norm) {
  bool finite = true;
  for (int64_t d = 0; d < dim; ++d) finite &= p[d] - p[d] == 0;
  if (finite) return norm;
  for (int64_t d = 0; d < dim; ++d) p[d] = (T)__builtin_nan("");
  return __builtin_nan("");
}

// (x - centre) / spread for rows [begin, end); returns the sum of their squared norms.
template <class T>
static double pack_rows(const Cloud<T>& c, int64_t begin, int64_t end, const T* centre, T inverse_spread) {
  double total = 0;
  for (int64_t i = begin; i < end; ++i) {
    T* p = c.points + i * c.stride;
    prefetch_row(c, i + 4);
    for_row(c, i, [=](int64_t d, T v) { p[d] = (v - centre[d]) * inverse_spread; });
    for (int64_t d = c.dim; d < c.stride; ++d) p[d] = 0;
    double norm = sum_of_squares<T>(c.dim, [=](int64_t d) { return p[d]; });
    if (__builtin_expect(!(norm < __builtin_inf()), 0)) norm = poison_row(p, c.dim, norm);
    c.norms[i] = (T)norm;
    c.weights[i] = c.source_weights ? c.source_weights[i] : c.mean_weight;
    if (c.source_bias) c.bias[i] = (T)(kLog2e * (double)c.source_bias[i]);
    total += norm;
  }
  return total;
}

// Four rows of four become columns, in registers.
template <class T>
DECOCT_INLINE void transpose_square(const T* in, int64_t in_row, T* out, int64_t out_row) {
  typedef T quad __attribute__((vector_size(4 * sizeof(T))));
  quad a[4];
  for (int i = 0; i < 4; ++i) std::memcpy(&a[i], in + i * in_row, sizeof(quad));
#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
  const quad low01 = __builtin_shufflevector(a[0], a[1], 0, 4, 1, 5);
  const quad low23 = __builtin_shufflevector(a[2], a[3], 0, 4, 1, 5);
  const quad high01 = __builtin_shufflevector(a[0], a[1], 2, 6, 3, 7);
  const quad high23 = __builtin_shufflevector(a[2], a[3], 2, 6, 3, 7);
  const quad b[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                     __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                     __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                     __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
#else
  quad b[4];
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) b[i][j] = a[j][i];
#endif
  for (int i = 0; i < 4; ++i) std::memcpy(out + i * out_row, &b[i], sizeof(quad));
}

// panels[p][d][l] = points[p * panel + l][d], zero past the last row up to a whole vector.
template <class T>
static void pack_panels(const T* points, int64_t stride, int64_t rows, int64_t dim, T* panels, int64_t begin,
                        int64_t end) {
  constexpr int64_t lanes = panel<T>, step = 64 / sizeof(T);
  static_assert(lanes % 4 == 0);
  for (int64_t p = begin; p < end; ++p) {
    T* out = panels + p * lanes * dim;
    const int64_t first = p * lanes, count = rows - first < lanes ? rows - first : lanes;
    const int64_t padded = round_up(count, width<T>), squares = count / 4 * 4, depth = dim / 4 * 4;
    const auto copy_each = [=](int64_t l0, int64_t l1, int64_t d0, int64_t d1) {
      for (int64_t d = d0; d < d1; ++d)
        for (int64_t l = l0; l < l1; ++l)
          out[d * lanes + l] = l < count ? points[(first + l) * stride + d] : T(0);
    };
    for (int64_t d0 = 0; d0 < depth; d0 += step) {
      const int64_t d1 = d0 + step < depth ? d0 + step : depth;
      for (int64_t l = 0; l < squares; l += 4)
        for (int64_t d = d0; d < d1; d += 4)
          transpose_square(points + (first + l) * stride + d, stride, out + d * lanes + l, lanes);
      copy_each(squares, padded, d0, d1);
    }
    copy_each(0, padded, depth, dim);
  }
}

// Zero weights and norms past the last row, and plans' lowest bias, so that padded columns of a tile count
// for nothing.
template <class T>
static void pad_cloud(const Cloud<T>& c) {
  for (int64_t i = c.rows; i < round_up(c.rows, kTileColumns<T>); ++i) {
    c.norms[i] = c.weights[i] = 0;
    c.bias[i] = kNothing<T>;
  }
}

template <class T>
static void clear_accumulators(const Cloud<T>& c, int64_t begin, int64_t end) {
  for (int s = 0; s < c.slabs; ++s) {
    const int64_t first = s * c.rows + begin, count = end - begin;
    if (c.grad) std::memset(c.grad + first * c.stride, 0, count * c.stride * sizeof(T));
    if (c.wsum) std::memset(c.wsum + first, 0, count * sizeof(double));
    if (c.ksum) std::memset(c.ksum + first, 0, count * sizeof(double));
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
