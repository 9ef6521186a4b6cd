// What the normalisation does with one plane at a time: elements of 16 bits to the compute type and back,
// parts of vectors, sums, average pooling and its transpose. Included inside one instruction set's
// translation unit.
#pragma once
#include "cloud.inl"

#define DECOCT_INLINE_MEMBER inline __attribute__((always_inline))

namespace decoct {
namespace DECOCT_ISA {

// The lanes of a step: all, or the first few of the last one.
struct AllLanes {};
struct FirstLanes {
  int count;
};

template <class T>
DECOCT_INLINE vec<T> load(const T* p, AllLanes, vec<T>) {
  return load(p);
}
template <class T>
DECOCT_INLINE vec<T> load(const T* p, FirstLanes lanes, vec<T> others) {
  T values[width<T>];
  store(values, others);
  for (int k = 0; k < lanes.count; ++k) values[k] = p[k];
  return load(values);
}
template <class T>
DECOCT_INLINE void store(T* p, AllLanes, vec<T> v) {
  store(p, v);
}
template <class T>
DECOCT_INLINE void store(T* p, FirstLanes lanes, vec<T> v) {
  T values[width<T>];
  store(values, v);
  for (int k = 0; k < lanes.count; ++k) p[k] = values[k];
}

// What lies between two steps is `stride` elements.
template <class T>
struct Steps {
  T* data;
  int64_t stride;
  T* at(int64_t step) const { return data + step * stride; }
};

// full steps of a vector each, then one of `rest` lanes.
struct Extent {
  int64_t full;
  int rest;
  int64_t steps() const { return full + (rest > 0); }
};

// use(step, lanes) over steps [begin, end).
template <class Use>
DECOCT_INLINE void for_steps(const Extent& extent, int64_t begin, int64_t end, Use use) {
  const int64_t whole = end < extent.full ? end : extent.full;
  for (int64_t step = begin; step < whole; ++step) use(step, AllLanes{});
  if (end > extent.full) use(extent.full, FirstLanes{extent.rest});
}

DECOCT_INLINE uint16_t bfloat_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;  // ties go to even
  return (uint16_t)(value == value ? rounded : 0x7fc0u);
}

// Adding 1.5 * 2^(e + 13) to a number of exponent e rounds it to the mantissa of a half, ties to even.
DECOCT_INLINE uint16_t half_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits >= 0x47800000u) return (uint16_t)(sign | (bits > 0x7f800000u ? 0x7e00u : 0x7c00u));
  const uint32_t exponent = bits < 0x38800000u ? 0x38800000u : bits & 0x7f800000u;
  const uint32_t magic_bits = exponent + (13u << 23);
  float magic, size;
  std::memcpy(&magic, &magic_bits, 4);
  std::memcpy(&size, &bits, 4);
  const float rounded = (size + magic) - magic;
  uint32_t result;
  std::memcpy(&result, &rounded, 4);
  // Below 2^-14 a half counts multiples of 2^-24; from there on its exponent is less by 112.
  if (result < 0x38800000u) return (uint16_t)(sign | (uint32_t)(rounded * 0x1p24f));
  return (uint16_t)(sign | ((result - 0x38000000u) >> 13));
}

template <class T>
DECOCT_INLINE void widen(const void* from, DType type, int64_t first, int64_t count, T* to) {
  const uint16_t* p = (const uint16_t*)from + first;
  if (type == DType::bfloat16)
    for (int64_t i = 0; i < count; ++i) to[i] = (T)bfloat_to_float(p[i]);
  else if (type == DType::float16)
    for (int64_t i = 0; i < count; ++i) to[i] = (T)half_to_float(p[i]);
  else
    std::memcpy(to, (const T*)from + first, (size_t)count * sizeof(T));
}

template <class T>
DECOCT_INLINE void narrow(const T* from, int64_t count, DType type, void* to, int64_t first) {
  uint16_t* p = (uint16_t*)to + first;
  if (type == DType::bfloat16)
    for (int64_t i = 0; i < count; ++i) p[i] = bfloat_of((float)from[i]);
  else if (type == DType::float16)
    for (int64_t i = 0; i < count; ++i) p[i] = half_of((float)from[i]);
  else
    std::memcpy((T*)to + first, from, (size_t)count * sizeof(T));
}

// Sums of neighbours, first those of a, then those of b; and each element twice.
#if defined(__AVX512F__)
DECOCT_INLINE vfloat neighbours(vfloat a, vfloat b) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return (vfloat)_mm512_permutex2var_ps((__m512)a, even, (__m512)b) +
         (vfloat)_mm512_permutex2var_ps((__m512)a, odd, (__m512)b);
}
DECOCT_INLINE vdouble neighbours(vdouble a, vdouble b) {
  const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
  const __m512i odd = _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15);
  return (vdouble)_mm512_permutex2var_pd((__m512d)a, even, (__m512d)b) +
         (vdouble)_mm512_permutex2var_pd((__m512d)a, odd, (__m512d)b);
}
DECOCT_INLINE void store_twice(float* to, vfloat v) {
  const __m512i low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  store(to, (vfloat)_mm512_permutexvar_ps(low, (__m512)v));
  store(to + 16, (vfloat)_mm512_permutexvar_ps(_mm512_add_epi32(low, _mm512_set1_epi32(8)), (__m512)v));
}
DECOCT_INLINE void store_twice(double* to, vdouble v) {
  const __m512i low = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
  store(to, (vdouble)_mm512_permutexvar_pd(low, (__m512d)v));
  store(to + 8, (vdouble)_mm512_permutexvar_pd(_mm512_add_epi64(low, _mm512_set1_epi64(4)), (__m512d)v));
}
#elif defined(__AVX2__)
DECOCT_INLINE vfloat neighbours(vfloat a, vfloat b) {
  const __m256d pairs = _mm256_castps_pd(_mm256_hadd_ps((__m256)a, (__m256)b));
  return (vfloat)_mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}
DECOCT_INLINE vdouble neighbours(vdouble a, vdouble b) {
  return (vdouble)_mm256_permute4x64_pd(_mm256_hadd_pd((__m256d)a, (__m256d)b), 0xd8);
}
DECOCT_INLINE void store_twice(float* to, vfloat v) {
  store(to, (vfloat)_mm256_permutevar8x32_ps((__m256)v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)));
  store(to + 8, (vfloat)_mm256_permutevar8x32_ps((__m256)v, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7)));
}
DECOCT_INLINE void store_twice(double* to, vdouble v) {
  store(to, (vdouble)_mm256_permute4x64_pd((__m256d)v, 0x50));
  store(to + 4, (vdouble)_mm256_permute4x64_pd((__m256d)v, 0xfa));
}
#else
template <class V>
DECOCT_INLINE V neighbours(V a, V b) {
  constexpr int half = sizeof a / sizeof a[0] / 2;
  V sums;
  for (int k = 0; k < half; ++k) {
    sums[k] = a[2 * k] + a[2 * k + 1];
    sums[k + half] = b[2 * k] + b[2 * k + 1];
  }
  return sums;
}
template <class T, class V>
DECOCT_INLINE void store_twice(T* to, V v) {
  for (unsigned k = 0; k < sizeof v / sizeof v[0]; ++k) to[2 * k] = to[2 * k + 1] = v[k];
}
#endif

// Of vectors that hold two rows: the sums of the rows of a, then of b; and each half twice.
template <class V>
DECOCT_INLINE V add_halves(V a, V b) {
#if defined(__AVX512F__)
  const __m512 low = _mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x44);
  return (V)low + (V)_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xee);
#elif defined(__AVX2__)
  const __m256 low = _mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20);
  return (V)low + (V)_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31);
#else
  constexpr int half = sizeof a / sizeof a[0] / 2;
  V sums;
  for (int k = 0; k < half; ++k) {
    sums[k] = a[k] + a[k + half];
    sums[k + half] = b[k] + b[k + half];
  }
  return sums;
#endif
}
template <class T, class V>
DECOCT_INLINE void store_halves_twice(T* to, V v) {
#if defined(__AVX512F__)
  store(to, (V)_mm512_shuffle_f32x4((__m512)v, (__m512)v, 0x44));
  store(to + width<T>, (V)_mm512_shuffle_f32x4((__m512)v, (__m512)v, 0xee));
#elif defined(__AVX2__)
  store(to, (V)_mm256_permute2f128_ps((__m256)v, (__m256)v, 0x00));
  store(to + width<T>, (V)_mm256_permute2f128_ps((__m256)v, (__m256)v, 0x11));
#else
  constexpr int half = width<T> / 2;
  for (int k = 0; k < width<T>; ++k) {
    to[k] = v[k % half];
    to[k + width<T>] = v[half + k % half];
  }
#endif
}

// Planes of which a vector holds two rows, windows of two rows: what is loaded must not straddle two stores.
template <class T>
DECOCT_INLINE bool has_row_pairs(const NormShape& s) {
  return s.pool_height == 2 && s.pool_width == 2 && 2 * s.width == width<T> && s.height % 2 == 0;
}

// Averages of a plane's windows. Rows are added first, so that windows that fill no row cost nothing; `plane`
// and `rows` may be read and written two vectors past their ends, `out` may not.
template <class T>
static void pool_plane(const NormShape& s, const T* plane, T* rows, T* out) {
  const int64_t used = s.pooled_width() * s.pool_width, count = s.pooled_pixels();
  const bool pairs = has_row_pairs<T>(s);
  for (int64_t step = 0; pairs && step < s.pooled_height(); step += 2)
    store(rows + step * used, add_halves(load(plane + step * width<T>), load(plane + (step + 1) * width<T>)));
  for (int64_t i = 0; !pairs && i < s.pooled_height(); ++i)
    for (int64_t j = 0; j < used; j += width<T>) {
      const T* p = plane + i * s.pool_height * s.width + j;
      vec<T> sum = load(p);
      for (int64_t a = 1; a < s.pool_height; ++a) sum += load(p + a * s.width);
      store(rows + i * used + j, sum);
    }
  const T scale = T(1) / (T)(s.pool_height * s.pool_width);
  if (s.pool_width == 2) {
    for_steps({count / width<T>, (int)(count % width<T>)}, 0, (count + width<T> - 1) / width<T>,
              [&](int64_t step, auto lanes) {
                const T* p = rows + 2 * step * width<T>;
                store(out + step * width<T>, lanes, neighbours(load(p), load(p + width<T>)) * scale);
              });
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    T sum = 0;
    for (int64_t b = 0; b < s.pool_width; ++b) sum += rows[i * s.pool_width + b];
    out[i] = sum * scale;
  }
}

// The transpose: every pixel of a window gets its share, the dropped ones get 0. `rows` and `plane` have
// room for two vectors past their ends.
template <class T>
static void spread_plane(const NormShape& s, const T* pooled, T* rows, T* plane) {
  const int64_t used = s.pooled_width() * s.pool_width, count = s.pooled_pixels();
  const T scale = T(1) / (T)(s.pool_height * s.pool_width);
  if (s.pool_width == 2)
    for_steps({count / width<T>, (int)(count % width<T>)}, 0, (count + width<T> - 1) / width<T>,
              [&](int64_t step, auto lanes) {
                const vec<T> share = load(pooled + step * width<T>, lanes, vec<T>{}) * scale;
                store_twice(rows + 2 * step * width<T>, share);
              });
  else
    for (int64_t i = 0; i < count; ++i)
      for (int64_t b = 0; b < s.pool_width; ++b) rows[i * s.pool_width + b] = pooled[i] * scale;
  const bool pairs = has_row_pairs<T>(s);
  for (int64_t i = 0; pairs && i < s.pooled_height(); i += 2)
    store_halves_twice(plane + i * width<T>, load(rows + i * used));
  for (int64_t r = 0; !pairs && r < s.height; ++r) {
    const int64_t i = r / s.pool_height;
    const int64_t filled = i < s.pooled_height() ? used : 0;
    for (int64_t j = 0; j < filled; j += width<T>) store(plane + r * s.width + j, load(rows + i * used + j));
    for (int64_t j = filled; j < s.width; ++j) plane[r * s.width + j] = 0;
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
