// Products of many rows x (N, D) with few points y (k, D), both ways: scores <x_i, y_j> in tiles of four rows
// and five points, whose sums along D stay in registers, and sums of rows by weights of ten points, on the
// register tile of gemm_tile.h. Both read x as it is; of scores, eight rows stay in the first-level cache for
// all points. The multiply-adds are the limit as long as rows come from a second-level cache.
#pragma once
#include "cloud.inl"

namespace decoct {
namespace DECOCT_ISA {

// Rows and points of a tile of scores, and points whose sums of rows are formed together: twenty sums, or ten
// where there are sixteen registers.
constexpr int kDotPoints = 5;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kDotTile = 4, kSumPoints = 10;
#else
constexpr int kDotTile = 2, kSumPoints = 5;
#endif
constexpr int64_t kDotRows = 8;  // whose scores with a block of points are formed together

// use(first, count) for points in blocks of at most `most`, whose sizes differ by one at most.
template <class Use>
DECOCT_INLINE void over_blocks(int64_t points, int64_t most, Use use) {
  const int64_t blocks = (points + most - 1) / most;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * points / blocks;
    use(first, (block + 1) * points / blocks - first);
  }
}

// Vectors whose lanes add up to the scores of `Rows` rows, at most kDotTile, with `Count` points. A function
// of its own: sums that are looked at lane by lane in the same one stay in memory while they are formed.
template <class T, int Rows, int Count>
static __attribute__((noinline)) void dot_products(const T* x, int64_t x_stride, const T* y, int64_t y_stride,
                                                   int64_t padded, T* lanes) {
  vec<T> sums[Rows][Count] = {};
  for (int64_t d = 0; d < padded; d += width<T>) {
    vec<T> row[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      row[r] = load(x + r * x_stride + d);
      __builtin_prefetch(x + (r + kDotRows) * x_stride + d, 0, 2);
    }
#pragma GCC unroll 5
    for (int c = 0; c < Count; ++c) {
      const vec<T> point = load(y + c * y_stride + d);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sums[r][c] += row[r] * point;
    }
  }
#pragma GCC unroll 5
  for (int c = 0; c < Count; ++c)
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) store(lanes + (c * kDotRows + r) * width<T>, sums[r][c]);
}

// The sums of the lanes of four vectors.
template <class T>
DECOCT_INLINE void sum_four(const T* vectors, T* out) {
  if constexpr (width<T> < 4) {
    for (int r = 0; r < 4; ++r) out[r] = sum_halves<T, kBytes>(vectors + r * width<T>);
  } else {
    typedef T quad __attribute__((vector_size(4 * sizeof(T))));
    T square[4][4], columns[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      quad sum, part;
      std::memcpy(&sum, vectors + r * width<T>, sizeof sum);
#pragma GCC unroll 4
      for (int q = 4; q < width<T>; q += 4) {
        std::memcpy(&part, vectors + r * width<T> + q, sizeof part);
        sum += part;
      }
      std::memcpy(square[r], &sum, sizeof sum);
    }
    transpose_square(square[0], 4, columns[0], 4);
    quad total = {};
#pragma GCC unroll 4
    for (int lane = 0; lane < 4; ++lane) {
      quad part;
      std::memcpy(&part, columns[lane], sizeof part);
      total += part;
    }
    std::memcpy(out, &total, sizeof total);
  }
}

// Scores of at most kDotRows rows with `count` points, at most kDotPoints.
template <class T, int Count = kDotPoints>
DECOCT_INLINE void dot_rows(int64_t rows, int64_t count, const T* x, int64_t x_stride, const T* y,
                            int64_t y_stride, int64_t padded, T* out, int64_t out_stride) {
  if constexpr (Count > 0) {
    if (count != Count)
      return dot_rows<T, Count - 1>(rows, count, x, x_stride, y, y_stride, padded, out, out_stride);
    alignas(kBytes) T lanes[Count * kDotRows * width<T>];
    int64_t i = 0;
    for (; i + kDotTile <= rows; i += kDotTile)
      dot_products<T, kDotTile, Count>(x + i * x_stride, x_stride, y, y_stride, padded, lanes + i * width<T>);
    for (; i < rows; ++i)
      dot_products<T, 1, Count>(x + i * x_stride, x_stride, y, y_stride, padded, lanes + i * width<T>);
    for (int c = 0; c < Count; ++c)
      for (i = 0; i < rows; ++i) {
        const T* vectors = lanes + (c * kDotRows + i) * width<T>;
        if (i + 4 <= rows) {
          sum_four(vectors, out + c * out_stride + i);
          i += 3;
        } else {
          out[c * out_stride + i] = sum_halves<T, kBytes>(vectors);
        }
      }
  }
}

// out (count, columns) += weights (count, rows) x (rows, columns); at most kSumPoints of them.
template <class T, int Count = kSumPoints>
DECOCT_INLINE void weighted_rows(int64_t count, int64_t rows, int64_t columns, const T* weights,
                                 int64_t weights_stride, const T* x, int64_t x_stride, T* out,
                                 int64_t out_stride) {
  if constexpr (Count > 0) {
    if (count != Count)
      return weighted_rows<T, Count - 1>(count, rows, columns, weights, weights_stride, x, x_stride, out,
                                         out_stride);
    constexpr int vectors = Count > kTileRows ? 2 : kTileVectors;
    int64_t d = 0;
    for (; d + vectors * width<T> <= columns; d += vectors * width<T>)
      register_tile<T, Count, vectors>(rows, weights, weights_stride, 1, x + d, x_stride, out + d, out_stride,
                                       true);
    for (; d < columns; d += width<T>)
      register_tile<T, Count, 1>(rows, weights, weights_stride, 1, x + d, x_stride, out + d, out_stride,
                                 true);
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
