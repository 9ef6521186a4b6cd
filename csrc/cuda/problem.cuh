// What every kernel is given, and how it reads the caller's rows.
#pragma once
#include "compat.cuh"
#include "workspace.h"

namespace decoct::cuda {

// Rows of the caller: any floating-point type, any stride.
struct Source {
  const void* data;
  int64_t stride;
  DType dtype;
  int32_t quads;  // whether every row starts so that four elements may be read at once
};

// One side of the problem. Packed rows are centred, zero-padded to whole units and 16-byte aligned; they are
// of type T, or bfloat16 where the products are (Problem::packed_bfloat16).
template <class T>
struct Side {
  Source source, source_tangents;
  const T *source_weights, *source_tangent_weights;
  int64_t weight_stride;
  // Of plans, for the cross term and for that of the side with itself: what is added to the exponents of
  // pairs with a row and with a column, the latter once for each label of a row. nullptr: none.
  const T *row_bias[2], *column_bias[2];
  const int64_t* labels;
  int64_t bias_pitch;  // from one label's column biases to the next
  void *points, *tangents;
  T *norms, *weights, *dots, *tangent_weights;  // dots: p . u of each row
};

template <class T>
struct Problem {
  Side<T> x, y;
  const SegmentPlan* segments;
  const Task* tasks;
  const Chunk* chunks;
  SegmentState<T>* states;
  const double* coefficients;  // (segments, 3)
  double* bandwidth;
  const double* shifts;  // (segments, 3): added to all exponents of a term, as powers of two; nullptr: 0
  double bias_unit;      // of biases, as powers of two
  Kernel kernel;
  int32_t dim, stride, slab_stride;
  int32_t precision, packed_bfloat16, from_data, moving;  // moving: some point has a tangent
  int32_t plan;                                           // pairs have biases
  int32_t* tickets;
  T *centres, *tangent_centres, *slabs;
  void* vectors;  // packed as rows are
  double *chunk_norms, *chunk_sums, *partials, *sums;
  char* scratch;
  int64_t scratch_stride;
};

template <class T>
DECOCT_DEVICE const Side<T>& side_of(const Problem<T>& p, bool on_x) {
  return on_x ? p.x : p.y;
}
DECOCT_DEVICE int64_t first_row(const SegmentPlan& s, bool on_x) {
  return on_x ? s.x_begin : s.y_begin;
}
DECOCT_DEVICE int rows_of(const SegmentPlan& s, bool on_x) {
  return on_x ? s.n : s.m;
}

DECOCT_DEVICE float bfloat_to_float(uint16_t bits) {
  return as_float((uint32_t)bits << 16);
}

template <class T>
DECOCT_DEVICE T load_element(const Source& s, int64_t row, int64_t column) {
  const int64_t at = row * s.stride + column;
  switch (s.dtype) {
    case DType::float64:
      return (T)((const double*)s.data)[at];
    case DType::float16:
      return (T)half_to_float(((const uint16_t*)s.data)[at]);
    case DType::bfloat16:
      return (T)bfloat_to_float(((const uint16_t*)s.data)[at]);
    default:
      return (T)((const float*)s.data)[at];
  }
}

// use(numbers, function that widens one of them), for what has data and a dtype. Where there is float64 all
// is computed in it.
template <class T, class Numbers, class Use>
DECOCT_DEVICE void with_numbers(const Numbers& m, Use use) {
  if (m.dtype == DType::float16)
    use((const uint16_t*)m.data, [](uint16_t v) { return (T)half_to_float(v); });
  else if (m.dtype == DType::bfloat16)
    use((const uint16_t*)m.data, [](uint16_t v) { return (T)bfloat_to_float(v); });
  else if (sizeof(T) == 8 && m.dtype == DType::float64)
    use((const double*)m.data, [](double v) { return (T)v; });
  else
    use((const float*)m.data, [](float v) { return (T)v; });
}

template <class E>
struct alignas(4 * sizeof(E) > 16 ? 16 : 4 * sizeof(E)) Quad {
  E v[4];
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

// Four elements of a row from a column on that four divides; zeros past the end of the row.
template <class T>
DECOCT_DEVICE void load_quad(const Source& s, int64_t row, int column, int dim, T (&out)[4]) {
  if (!s.quads || column + 4 > dim) {
    for (int k = 0; k < 4; ++k) out[k] = column + k < dim ? load_element<T>(s, row, column + k) : T(0);
    return;
  }
  const int64_t at = (row * s.stride + column) / 4;
  if (s.dtype == DType::float32) {
    const Quad<float> q = ((const Quad<float>*)s.data)[at];
    for (int k = 0; k < 4; ++k) out[k] = (T)q.v[k];
  } else if (s.dtype == DType::float64) {
    const Quad<double> q = ((const Quad<double>*)s.data)[at];
    for (int k = 0; k < 4; ++k) out[k] = (T)q.v[k];
  } else {
    const Quad<uint16_t> q = ((const Quad<uint16_t>*)s.data)[at];
    for (int k = 0; k < 4; ++k)
      out[k] = (T)(s.dtype == DType::float16 ? half_to_float(q.v[k]) : bfloat_to_float(q.v[k]));
  }
}

template <class T>
DECOCT_DEVICE void store_quad(T* to, const T (&values)[4]) {
  Quad<T> q;
  for (int k = 0; k < 4; ++k) q.v[k] = values[k];
  *(Quad<T>*)to = q;
}

// Elements of packed rows, of either type.
template <class T>
DECOCT_DEVICE T read_packed(const Problem<T>& p, const void* rows, int64_t at) {
  return p.packed_bfloat16 ? (T)bfloat_to_float(((const uint16_t*)rows)[at]) : ((const T*)rows)[at];
}
template <class T>
DECOCT_DEVICE void write_packed(const Problem<T>& p, void* rows, int64_t at, T value) {
  if (p.packed_bfloat16)
    ((uint16_t*)rows)[at] = (uint16_t)pack_bfloat16((float)value, 0.0f);
  else
    ((T*)rows)[at] = value;
}
template <class T>
DECOCT_DEVICE void write_packed_quad(const Problem<T>& p, void* rows, int64_t at, const T (&v)[4]) {
  if (p.packed_bfloat16)
    *(Pair<uint32_t>*)((uint16_t*)rows + at) = {pack_bfloat16((float)v[0], (float)v[1]),
                                                pack_bfloat16((float)v[2], (float)v[3])};
  else
    store_quad((T*)rows + at, v);
}

}  // namespace decoct::cuda
