// Images of any type and strides on their way into packed scratch.
#pragma once
#include "cloud.inl"

namespace decoct {
namespace DECOCT_ISA {

template <class T>
DECOCT_INLINE bool is_of(DType dtype) {
  return dtype == (sizeof(T) == 8 ? DType::float64 : DType::float32);
}

// out[k] = source[k stride], widened.
template <class T>
static void widen(T* out, const void* source, DType dtype, int64_t stride, int64_t count) {
  const auto copy = [=](const auto* from, auto convert) {
    if (stride == 1)
      for (int64_t k = 0; k < count; ++k) out[k] = convert(from[k]);
    else
      for (int64_t k = 0; k < count; ++k) out[k] = convert(from[k * stride]);
  };
  switch (dtype) {
    case DType::float64:
      return copy((const double*)source, [](double v) { return (T)v; });
    case DType::float16:
      return copy((const uint16_t*)source, [](uint16_t v) { return (T)half_to_float(v); });
    case DType::bfloat16:
      return copy((const uint16_t*)source, [](uint16_t v) { return (T)bfloat_to_float(v); });
    default:
      return copy((const float*)source, [](float v) { return (T)v; });
  }
}

// The same for numbers side by side, most of which need no widening.
template <class T>
DECOCT_INLINE void copy_numbers(T* out, const void* source, DType dtype, int64_t count) {
  if (!is_of<T>(dtype)) return widen(out, source, dtype, 1, count);
  const T* from = (const T*)source;
  if (count < width<T>) {
    std::memcpy(out, from, count * sizeof(T));
    return;
  }
  for (int64_t k = 0; k + width<T> <= count; k += width<T>) store(out + k, load(from + k));
  store(out + count - width<T>, load(from + count - width<T>));
}

DECOCT_INLINE const char* element(const Images& m, int64_t image, int64_t channel, int64_t y, int64_t x) {
  const int64_t at = image * m.strides[0] + channel * m.strides[1] + y * m.strides[2] + x * m.strides[3];
  return (const char*)m.data + at * element_bytes(m.dtype);
}

// Whether the channels of a pixel, and not the pixels of a channel, lie side by side.
DECOCT_INLINE bool channels_last(const Images& m) {
  return m.channels > 1 && m.strides[1] == 1 && (m.width == 1 || m.strides[3] != 1);
}

// Rows 2k and 2k + 1 become the first and the second half of rows k and k + width / 2, their lanes in turn.
template <class T, int... Lane>
DECOCT_INLINE void interleave(const vec<T> (&from)[width<T>], vec<T> (&to)[width<T>],
                              std::integer_sequence<int, Lane...>) {
  constexpr int n = width<T>;
#pragma GCC unroll 8
  for (int k = 0; k < n / 2; ++k) {
    to[2 * k] = __builtin_shufflevector(from[k], from[k + n / 2], (Lane / 2 + Lane % 2 * n)...);
    to[2 * k + 1] = __builtin_shufflevector(from[k], from[k + n / 2], (n / 2 + Lane / 2 + Lane % 2 * n)...);
  }
}

// A square of vectors, log2(width) times interleaved, is its transpose.
template <class T>
DECOCT_INLINE void transpose(vec<T> (&rows)[width<T>]) {
  vec<T> other[width<T>];
  constexpr std::make_integer_sequence<int, width<T>> lanes{};
  interleave<T>(rows, other, lanes);
  if constexpr (width<T> == 2) std::memcpy(&rows, &other, sizeof rows);
  if constexpr (width<T> >= 4) interleave<T>(other, rows, lanes);
  if constexpr (width<T> == 8) {
    interleave<T>(rows, other, lanes);
    std::memcpy(&rows, &other, sizeof rows);
  }
  if constexpr (width<T> == 16) {
    interleave<T>(rows, other, lanes);
    interleave<T>(other, rows, lanes);
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
