// The one matrix product of the engine: C (+)= A B on a register tile of kTileRows x (kTileVectors vectors).
//
// B comes as rows of at most one panel of columns (contiguous, stride b_step), A by broadcast from any two
// strides, so the same code serves the scores (A = rows, B = transposed columns), the row gradients (A =
// weights, B = column points) and the column gradients (A = transposed weights, B = row points). Each k costs
// kTileVectors loads and kTileRows broadcasts for kTileRows * kTileVectors multiply-adds: the multiply-adds
// are the limit.
#pragma once
#include "simd.h"

namespace decoct {
namespace DECOCT_ISA {

// k is cut into chunks so that a panel of B stays in the first-level cache; each chunk is summed from zero,
// which also keeps the rounding error of long sums down.
constexpr int64_t kDepth = 256;

template <class T, int R, int V>
static void register_tile(int64_t depth, const T* a, int64_t a_row, int64_t a_step, const T* b,
                          int64_t b_step, T* c, int64_t c_row, bool add) {
  vec<T> sums[R][V] = {};
  for (int64_t k = 0; k < depth; ++k) {
    vec<T> row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load(b + v * width<T>);
#pragma GCC unroll 10
    for (int i = 0; i < R; ++i) {
      const vec<T> left = splat(a[i * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[i][v] += left * row[v];
    }
    a += a_step;
    b += b_step;
  }
#pragma GCC unroll 10
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* out = c + i * c_row + v * width<T>;
      store(out, add ? load(out) + sums[i][v] : sums[i][v]);
    }
}

template <class T, int V, int R = kTileRows>
DECOCT_INLINE void register_tail(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_step,
                                 const T* b, int64_t b_step, T* c, int64_t c_row, bool add) {
  if constexpr (R > 0) {
    if (rows == R)
      register_tile<T, R, V>(depth, a, a_row, a_step, b, b_step, c, c_row, add);
    else
      register_tail<T, V, R - 1>(rows, depth, a, a_row, a_step, b, b_step, c, c_row, add);
  }
}

template <class T, int V>
static void panel_product(int64_t rows, int64_t depth, const T* a, int64_t a_row, int64_t a_step, const T* b,
                          int64_t b_step, T* c, int64_t c_row, bool add) {
  const auto tail = [=](int64_t first, int64_t count) {
    register_tail<T, V>(count, depth, a + first * a_row, a_row, a_step, b, b_step, c + first * c_row, c_row,
                        add);
  };
  // A tile of few rows has too few sums to keep the units busy: it shares with the one before it.
  const int64_t rest = rows % kTileRows;
  const bool share = rest && rest < kTileRows / 2 && rows > rest;
  const int64_t whole = rows - rest - (share ? kTileRows : 0), half = (rows - whole + 1) / 2;
  for (int64_t i = 0; i < whole; i += kTileRows)
    register_tile<T, kTileRows, V>(depth, a + i * a_row, a_row, a_step, b, b_step, c + i * c_row, c_row, add);
  tail(whole, share ? half : rest);
  if (share) tail(whole + half, rows - whole - half);
}

// C (rows x vectors * width) (+)= A (rows x depth) B (depth x vectors * width), vectors <= kTileVectors.
template <class T>
static void product(int64_t rows, int vectors, int64_t depth, const T* a, int64_t a_row, int64_t a_step,
                    const T* b, int64_t b_step, T* c, int64_t c_row, bool add) {
  switch (vectors) {
    case 1:
      return panel_product<T, 1>(rows, depth, a, a_row, a_step, b, b_step, c, c_row, add);
    case 2:
      return panel_product<T, 2>(rows, depth, a, a_row, a_step, b, b_step, c, c_row, add);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 3:
      return panel_product<T, 3>(rows, depth, a, a_row, a_step, b, b_step, c, c_row, add);
#endif
#if defined(__aarch64__)
    case 4:
      return panel_product<T, 4>(rows, depth, a, a_row, a_step, b, b_step, c, c_row, add);
#endif
    default:
      return;
  }
}

template <class T>
DECOCT_INLINE int vectors_for(int64_t columns) {
  const int64_t vectors = (columns + width<T> - 1) / width<T>;
  return vectors < kTileVectors ? (int)vectors : kTileVectors;
}

}  // namespace DECOCT_ISA
}  // namespace decoct
