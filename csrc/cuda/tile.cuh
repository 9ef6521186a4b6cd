// Tiles on their way from packed rows to shared memory.
#pragma once
#include "arithmetic.cuh"

namespace decoct::cuda {

constexpr int kStepBytes = 128;  // of a row, brought in at a time where tiles are cut along k
constexpr int kStages = 3;       // steps in flight or in use

template <class T>
constexpr int kStep = kStepBytes / (int)sizeof(T);

// Elements from one row of a tile to the next: the rows that a warp reads together lie in different banks.
template <class T>
constexpr int row_pitch(int width) {
  return width + kTilePadding / (int)sizeof(T);
}
// The same for tiles that are read along their columns, one row's numbers at a time, or in bfloat16 by
// matrices as above.
template <class T>
constexpr int column_pitch(int width) {
  return width + (sizeof(T) == 2 ? 1 : 2) * kTilePadding / (int)sizeof(T);
}

// A tile of `Height` rows, of which `rows` exist, and of `Width` columns from `column` on; columns beyond
// `columns` and the other rows are zero. Every row is 16-byte aligned on both sides. A thread copies from one
// column only, so that the way from piece to piece is a constant.
template <int Width, int Height, class T>
DECOCT_DEVICE void load_tile(T* tile, int pitch, const T* points, int64_t stride, int rows, int column,
                             int columns) {
  constexpr int piece = 16 / (int)sizeof(T), pieces = Width / piece, together = kThreads / pieces;
  static_assert(kThreads % pieces == 0 && (Height % together == 0 || Height < together));
  const int row = thread_index() / pieces, d = thread_index() % pieces * piece;
  if (Height < together && row >= Height) return;
  const bool inside = column + d < columns;
  const T* from = points + row * stride + column + d;
  T* to = tile + row * pitch + d;
#pragma unroll
  for (int r = 0; r < Height; r += together) {
    copy_async(to + r * pitch, from, inside && row + r < rows ? 16 : 0);
    from += together * stride;
  }
}

template <class T, int M, int N>
DECOCT_DEVICE void clear(T (&sums)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[m][n][e] = 0;
}

template <class T>
DECOCT_DEVICE void copy_constants(ProfileConstants<T>* shared, const ProfileConstants<T>& constants) {
  static_assert(sizeof(ProfileConstants<T>) % 4 == 0);
  for (int w = thread_index(); w < (int)sizeof(ProfileConstants<T>) / 4; w += kThreads)
    ((uint32_t*)shared)[w] = ((const uint32_t*)&constants)[w];
}

}  // namespace decoct::cuda
