// One segment's rows of x or y made ready for the tiles: centred (translation-invariant kernels), widened to
// the compute type, with squared norms, weights padded by zeros, and, for clouds that serve as columns,
// transposed into panels. Bytes moved: each row is read twice (centre, pack) and written once or twice. The
// accumulators live here too.
#pragma once
#include "gemm_tile.h"

namespace decoct {
namespace DECOCT_ISA {

template <class T>
constexpr int64_t kTileColumns = sizeof(T) == 4 ? 192 : 96;
constexpr int64_t kTileHeight = 96;  // rows of a tile: a multiple of every kTileRows
constexpr int64_t kSmallDim = 8;     // below it the gradient products run along the columns, not along D

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
  const T* source_weights;
  int64_t rows, dim, stride, panels_dim;
  T *points, *norms, *weights, *panels;
  T* grad;       // (slabs, rows, stride): sum_j W_ij p_j
  double* wsum;  // (slabs, rows): sum_j W_ij
  double* ksum;  // (slabs, rows): sum_j c b_j k_ij
  int slabs;
  bool wants_grad, wants_weight;
};

template <class T>
static void cloud_layout(Cloud<T>& c, Arena& arena, bool as_columns) {
  c.stride = padded_stride<T>(c.dim);
  const int64_t padded = round_up(c.rows, kTileColumns<T>);
  c.points = arena.take<T>(c.rows * c.stride);
  c.norms = arena.take<T>(padded);
  c.weights = arena.take<T>(padded);
  c.panels = as_columns ? arena.take<T>(round_up(c.rows, panel<T>) * c.dim) : nullptr;
  const int64_t slabs = c.slabs;
  c.grad = c.wants_grad ? arena.take<T>(slabs * c.rows * c.stride) : nullptr;
  c.wsum = c.wants_grad ? arena.take<double>(slabs * c.rows) : nullptr;
  c.ksum = c.wants_weight ? arena.take<double>(slabs * c.rows) : nullptr;
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

template <class T, class Use>
DECOCT_INLINE void for_row(const Cloud<T>& c, int64_t row, Use use) {
  if (c.dtype == DType::float32) {
    const float* p = (const float*)c.source + row * c.source_stride;
    for (int64_t d = 0; d < c.dim; ++d) use(d, (T)p[d]);
  } else if (c.dtype == DType::float64) {
    const double* p = (const double*)c.source + row * c.source_stride;
    for (int64_t d = 0; d < c.dim; ++d) use(d, (T)p[d]);
  } else {
    const uint16_t* p = (const uint16_t*)c.source + row * c.source_stride;
    if (c.dtype == DType::float16)
      for (int64_t d = 0; d < c.dim; ++d) use(d, (T)half_to_float(p[d]));
    else
      for (int64_t d = 0; d < c.dim; ++d) use(d, (T)bfloat_to_float(p[d]));
  }
}

template <class T>
static void add_column_sums(const Cloud<T>& c, int64_t begin, int64_t end, double* sums) {
  for (int64_t i = begin; i < end; ++i) for_row(c, i, [=](int64_t d, T v) { sums[d] += v; });
}

// (x - centre) / spread for rows [begin, end); returns the sum of their squared norms.
template <class T>
static double pack_rows(const Cloud<T>& c, int64_t begin, int64_t end, const T* centre, T inverse_spread) {
  double total = 0;
  for (int64_t i = begin; i < end; ++i) {
    T* p = c.points + i * c.stride;
    for_row(c, i, [=](int64_t d, T v) { p[d] = (v - centre[d]) * inverse_spread; });
    for (int64_t d = c.dim; d < c.stride; ++d) p[d] = 0;
    constexpr int lanes = width<double> * 4;
    double parts[lanes] = {};
    int64_t d = 0;
    for (; d + lanes <= c.dim; d += lanes)
      for (int l = 0; l < lanes; ++l) parts[l] += (double)p[d + l] * (double)p[d + l];
    for (int l = 0; d < c.dim; ++d, ++l) parts[l] += (double)p[d] * (double)p[d];
    for (int step = lanes / 2; step > 0; step /= 2)
      for (int l = 0; l < step; ++l) parts[l] += parts[l + step];
    c.norms[i] = (T)parts[0];
    c.weights[i] = c.source_weights ? c.source_weights[i] : T(1) / (T)c.rows;
    total += parts[0];
  }
  return total;
}

// panels[p][d][l] = points[p * panel + l][d], zero past the last row.
template <class T>
static void pack_panels(const T* points, int64_t stride, int64_t rows, int64_t dim, T* panels, int64_t begin,
                        int64_t end) {
  constexpr int64_t lanes = panel<T>, step = 64 / sizeof(T);
  for (int64_t p = begin; p < end; ++p) {
    T* out = panels + p * lanes * dim;
    const int64_t first = p * lanes, count = rows - first < lanes ? rows - first : lanes;
    for (int64_t d0 = 0; d0 < dim; d0 += step) {
      const int64_t d1 = d0 + step < dim ? d0 + step : dim;
      for (int64_t l = 0; l < count; ++l) {
        const T* p_row = points + (first + l) * stride;
        for (int64_t d = d0; d < d1; ++d) out[d * lanes + l] = p_row[d];
      }
      if (count < lanes)
        for (int64_t d = d0; d < d1; ++d)
          for (int64_t l = count; l < lanes; ++l) out[d * lanes + l] = 0;
    }
  }
}

// Zero weights and norms past the last row, so that padded columns of a tile count for nothing.
template <class T>
static void pad_cloud(const Cloud<T>& c) {
  for (int64_t i = c.rows; i < round_up(c.rows, kTileColumns<T>); ++i) c.norms[i] = c.weights[i] = 0;
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
