// What kernels on single images share: channels of one image, each a run of pixels, in packed scratch.
#pragma once
#include "class_gradients.inl"

namespace decoct {
namespace DECOCT_ISA {

// Class gradients of these images, of which each is asked for alone.
DECOCT_INLINE SegmentOuterArguments outer_of(const LayerPair& pair) {
  SegmentOuterArguments a{};
  a.activations = pair.activations;
  a.gradients = pair.gradients;
  a.convolution = pair.convolution;
  a.type = pair.type;
  a.segments = larger(pair.activations.count, 1);
  return a;
}

// to[k pitch + x] = channel k of pixel x, `count` channels of `length` pixels from `from` on.
template <class T>
static void pack_run(const Images& m, const char* from, int64_t count, int64_t length, T* to, int64_t pitch) {
  const int64_t size = element_bytes(m.dtype);
  if (!channels_last(m)) {
    for (int64_t k = 0; k < count; ++k, to += pitch, from += m.strides[1] * size)
      if (m.strides[3] == 1)
        copy_numbers(to, from, m.dtype, length);
      else
        widen(to, from, m.dtype, m.strides[3], length);
    return;
  }
  for (int64_t k = 0; k < count; k += width<T>)
    for (int64_t x = 0; x < length; x += width<T>) {
      const int64_t channels = count - k < width<T> ? count - k : width<T>;
      const int64_t pixels = length - x < width<T> ? length - x : width<T>;
      vec<T> square[width<T>];
      for (int64_t r = 0; r < width<T>; ++r) {
        T numbers[width<T>] = {};
        if (r < pixels) copy_numbers(numbers, from + (k + (x + r) * m.strides[3]) * size, m.dtype, channels);
        square[r] = load(numbers);
      }
      transpose<T>(square);
      for (int64_t r = 0; r < channels; ++r) {
        if (pixels == width<T>)
          store(to + (k + r) * pitch + x, square[r]);
        else
          std::memcpy(to + (k + r) * pitch + x, &square[r], pixels * sizeof(T));
      }
    }
}

// `count` channels from `channel` on of a window of an image whose corner is at (top, left): channel k's
// height x columns pixels follow one another from to[k pitch] on. Zeros outside of the image.
template <class T>
static void pack_channels(const Images& m, int64_t image, int64_t channel, int64_t count, int64_t top,
                          int64_t left, int64_t height, int64_t columns, T* to, int64_t pitch) {
  const int64_t begin = left < 0 ? -left : 0, end = m.width - left < columns ? m.width - left : columns;
  const int64_t first = top < 0 ? -top : 0, last = m.height - top < height ? m.height - top : height;
  const bool whole = begin == 0 && end == columns && first == 0 && last == height;
  if (whole && columns == m.width && m.strides[2] == m.width * m.strides[3])
    return pack_run(m, element(m, image, channel, top, left), count, height * columns, to, pitch);
  if (!whole)
    for (int64_t k = 0; k < count; ++k) std::memset(to + k * pitch, 0, height * columns * sizeof(T));
  if (begin >= end) return;
  for (int64_t y = first; y < last; ++y)
    pack_run(m, element(m, image, channel, top + y, left + begin), count, end - begin,
             to + y * columns + begin, pitch);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
