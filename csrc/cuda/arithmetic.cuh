// Products of small tiles, one policy for each precision. All of them give a lane the same outputs: of a warp
// tile of 16 M x 8 N, with g = lane / 4 and t = lane % 4, sums[m][n] holds rows g, g, g + 8, g + 8 and
// columns 2t, 2t + 1, 2t, 2t + 1 of its 16 x 8 part. So what follows a product is written once.
//
// Two kinds of second operand:
//   multiply_rows     sums += A B^T, both stored along k                       (scores)
//   multiply_columns  sums += A B, B stored along its columns                  (weights times points)
// and multiply_weights, where A comes from sums of an earlier product: weight columns 2t and 2t + 1 are taken
// as k = t and t + 4, so that a lane already holds what it must supply.
//
// 3xTF32: v = big + small; big big + big small + small big leaves about 2^-22 of a product. Tensor
// cores cut sums off instead of rounding them, which adds up over a long sum: 3xTF32 sums are made in parts
// of at most 32 columns and added by ordinary additions. Operands are rounded, bfloat16 also stored, when
// rows are packed, so that no conversion is left in the loop (weights excepted).
#pragma once
#include "problem.cuh"

namespace decoct::cuda {

// Rows of tiles in shared memory are this many bytes longer than their contents, so that the eight rows that
// a warp reads at a time lie in different banks.
constexpr int kTilePadding = 16;

// Elements in 16 bytes, a row of the matrices that load_matrices reads.
template <class P>
constexpr int kPiece = 16 / (int)sizeof(P);

// The rest of a rounded number has twelve bits and a sign: of its eleven that a tensor core reads at most the
// last is lost, a unit in the last place of `value`. Integer rounding takes half of the instructions of a
// conversion; a NaN that it overflows comes back as the rest.
DECOCT_DEVICE void split_tf32(float value, uint32_t& big, uint32_t& small) {
  big = (as_bits(value) + 0x1000u) & ~0x1fffu;
  small = as_bits(value - as_float(big));
}

// A (16 M rows) for one instruction's k, 32 bytes of a row, from a row-major tile: four words a lane and m.
template <int M, class P>
DECOCT_DEVICE void load_left(uint32_t (&a)[M][4], const P* tile, int stride, int k) {
  const int lane = lane_index();
#pragma unroll
  for (int m = 0; m < M; ++m)
    load_matrices(a[m], tile + (m * 16 + lane % 16) * stride + k + lane / 16 * kPiece<P>);
}

// Both halves of k of B's columns, stored along k: two column groups at a time.
template <int N, class P>
DECOCT_DEVICE void load_right_rows(uint32_t (&b)[N][2], const P* tile, int stride, int k) {
  static_assert(N % 2 == 0);
  const int lane = lane_index();
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    uint32_t words[4];
    load_matrices(words, tile + ((n + lane / 16) * 8 + lane % 8) * stride + k + lane / 8 % 2 * kPiece<P>);
    b[n][0] = words[0];
    b[n][1] = words[1];
    b[n + 1][0] = words[2];
    b[n + 1][1] = words[3];
  }
}

// B's rows first and second for k = t and t + 4, stored along the columns.
template <int N>
DECOCT_DEVICE void load_right_columns(uint32_t (&b)[N][2], const float* tile, int stride, int first,
                                      int second) {
  const int g = lane_index() / 4;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    b[n][0] = as_bits(tile[first * stride + n * 8 + g]);
    b[n][1] = as_bits(tile[second * stride + n * 8 + g]);
  }
}

template <int Rows, int Words>
DECOCT_DEVICE void split_all(uint32_t (&big)[Rows][Words], uint32_t (&small)[Rows][Words]) {
#pragma unroll
  for (int r = 0; r < Rows; ++r)
#pragma unroll
    for (int w = 0; w < Words; ++w) split_tf32(as_float(big[r][w]), big[r][w], small[r][w]);
}

struct Single {  // TF32
  using T = float;

  template <int M, int N>
  static DECOCT_DEVICE void multiply(float (&sums)[M][N][4], uint32_t (&a)[M][4], uint32_t (&b)[N][2]) {
    multiply_tf32(sums, a, b);
  }
  // Sums of a part are the sums.
  template <int M, int N, class Use>
  static DECOCT_DEVICE void in_parts(float (&sums)[M][N][4], Use use) {
    use(sums);
  }
  static DECOCT_DEVICE float weight(float w) { return as_float(to_tf32(w)); }
};

struct Triple {  // 3xTF32
  using T = float;

  template <int M, int N>
  static DECOCT_DEVICE void multiply(float (&sums)[M][N][4], uint32_t (&a)[M][4], uint32_t (&b)[N][2]) {
    uint32_t a_small[M][4], b_small[N][2];
    split_all(a, a_small);
    split_all(b, b_small);
    multiply_tf32(sums, a, b_small);
    multiply_tf32(sums, a_small, b);
    multiply_tf32(sums, a, b);
  }
  template <int M, int N, class Use>
  static DECOCT_DEVICE void in_parts(float (&sums)[M][N][4], Use use) {
    float part[M][N][4] = {};
    use(part);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][n][e] += part[m][n][e];
  }
  static DECOCT_DEVICE float weight(float w) { return w; }
};

constexpr int kPart = 32;  // columns of a part

// What TF32 and 3xTF32 share.
template <class A>
struct TensorFloat : A {
  using Point = float;  // what operands are stored as

  static DECOCT_DEVICE float point(float value) { return value; }
  static DECOCT_DEVICE void store(float* to, float first, float second) {
    *(Pair<float>*)to = {first, second};
  }

  // load_right(B's words, k) supplies the second operand.
  template <int M, int N, class LoadRight>
  static DECOCT_DEVICE void multiply_with(float (&sums)[M][N][4], const float* a, int a_stride, int depth,
                                          LoadRight load_right) {
    for (int begin = 0; begin < depth; begin += kPart)
      A::in_parts(sums, [&](float(&part)[M][N][4]) {
        for (int k = begin; k < depth && k < begin + kPart; k += 8) {
          uint32_t left[M][4], right[N][2];
          load_left(left, a, a_stride, k);
          load_right(right, k);
          A::multiply(part, left, right);
        }
      });
  }

  template <int M, int N>
  static DECOCT_DEVICE void multiply_rows(float (&sums)[M][N][4], const float* a, int a_stride,
                                          const float* b, int b_stride, int depth) {
    multiply_with(sums, a, a_stride, depth,
                  [&](uint32_t(&right)[N][2], int k) { load_right_rows(right, b, b_stride, k); });
  }

  template <int M, int N>
  static DECOCT_DEVICE void multiply_columns(float (&sums)[M][N][4], const float* a, int a_stride,
                                             const float* b, int b_stride, int depth) {
    const int t = lane_index() % 4;
    multiply_with(sums, a, a_stride, depth, [&](uint32_t(&right)[N][2], int k) {
      load_right_columns(right, b, b_stride, k + t, k + t + 4);
    });
  }

  // sums += weights b: b's rows are the columns of the weights.
  template <int M, int K, int N>
  static DECOCT_DEVICE void multiply_weights(float (&sums)[M][N][4], const float (&weights)[M][K][4],
                                             const float* b, int b_stride) {
    static_assert(K * 8 <= kPart);
    const int t = lane_index() % 4;
    A::in_parts(sums, [&](float(&part)[M][N][4]) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        uint32_t left[M][4], right[N][2];
#pragma unroll
        for (int m = 0; m < M; ++m) {
          left[m][0] = as_bits(weights[m][k][0]);
          left[m][1] = as_bits(weights[m][k][2]);
          left[m][2] = as_bits(weights[m][k][1]);
          left[m][3] = as_bits(weights[m][k][3]);
        }
        load_right_columns(right, b, b_stride, k * 8 + 2 * t, k * 8 + 2 * t + 1);
        A::multiply(part, left, right);
      }
    });
  }
};

using Tf32 = TensorFloat<Single>;
using Tf32x3 = TensorFloat<Triple>;

// bfloat16 products; sums and what follows them are floats.
struct Bfloat16 {
  using T = float;
  using Point = uint16_t;

  static DECOCT_DEVICE Point point(float value) { return (Point)pack_bfloat16(value, 0.0f); }
  static DECOCT_DEVICE float weight(float w) { return as_float((uint32_t)point(w) << 16); }
  static DECOCT_DEVICE void store(Point* to, float first, float second) {
    *(uint32_t*)to = pack_bfloat16(first, second);
  }

  // 16 rows of B from `tile` on, stored along its columns: two column groups at a time.
  template <int N>
  static DECOCT_DEVICE void load_columns(uint32_t (&b)[N][2], const Point* tile, int stride) {
    static_assert(N % 2 == 0);
    const int lane = lane_index();
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t words[4];
      load_transposed(words, tile + lane % 16 * stride + (n + lane / 16) * 8);
      b[n][0] = words[0];
      b[n][1] = words[1];
      b[n + 1][0] = words[2];
      b[n + 1][1] = words[3];
    }
  }

  template <int M, int N>
  static DECOCT_DEVICE void multiply_rows(float (&sums)[M][N][4], const Point* a, int a_stride,
                                          const Point* b, int b_stride, int depth) {
    for (int k = 0; k < depth; k += 16) {
      uint32_t left[M][4], right[N][2];
      load_left(left, a, a_stride, k);
      load_right_rows(right, b, b_stride, k);
      multiply_bfloat16(sums, left, right);
    }
  }

  template <int M, int N>
  static DECOCT_DEVICE void multiply_columns(float (&sums)[M][N][4], const Point* a, int a_stride,
                                             const Point* b, int b_stride, int depth) {
    for (int k = 0; k < depth; k += 16) {
      uint32_t left[M][4], right[N][2];
      load_left(left, a, a_stride, k);
      load_columns(right, b + k * b_stride, b_stride);
      multiply_bfloat16(sums, left, right);
    }
  }

  // Weight columns 2t, 2t + 1 of two groups of eight are what the instruction wants as they are.
  template <int M, int K, int N>
  static DECOCT_DEVICE void multiply_weights(float (&sums)[M][N][4], const float (&weights)[M][K][4],
                                             const Point* b, int b_stride) {
    static_assert(K % 2 == 0);
#pragma unroll
    for (int k = 0; k < K; k += 2) {
      uint32_t left[M][4], right[N][2];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float* w = weights[m][k + h];
          left[m][2 * h] = pack_bfloat16(w[0], w[1]);
          left[m][2 * h + 1] = pack_bfloat16(w[2], w[3]);
        }
      load_columns(right, b + k * 8 * b_stride, b_stride);
      multiply_bfloat16(sums, left, right);
    }
  }
};

// Plain multiplications, for float64.
template <class Number>
struct Scalar {
  using T = Number;
  using Point = Number;

  static DECOCT_DEVICE T weight(T w) { return w; }
  static DECOCT_DEVICE T point(T value) { return value; }
  static DECOCT_DEVICE void store(T* to, T first, T second) { *(Pair<T>*)to = {first, second}; }

  template <int M, int N>
  static DECOCT_DEVICE void multiply_rows(T (&sums)[M][N][4], const T* a, int a_stride, const T* b,
                                          int b_stride, int depth) {
    multiply(sums, a, a_stride, b, b_stride, 1, depth);
  }
  template <int M, int N>
  static DECOCT_DEVICE void multiply_columns(T (&sums)[M][N][4], const T* a, int a_stride, const T* b,
                                             int b_stride, int depth) {
    multiply(sums, a, a_stride, b, 1, b_stride, depth);
  }

 private:
  // b_column, b_step: from one column of B to the next, and from one k to the next.
  template <int M, int N>
  static DECOCT_DEVICE void multiply(T (&sums)[M][N][4], const T* a, int a_stride, const T* b, int b_column,
                                     int b_step, int depth) {
    const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll 2
    for (int k = 0; k < depth; ++k) {
      T left[M][2], right[N][2];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) left[m][h] = a[(m * 16 + h * 8 + g) * a_stride + k];
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h) right[n][h] = b[(n * 8 + 2 * t + h) * b_column + k * b_step];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[m][n][e] += left[m][e / 2] * right[n][e % 2];
    }
  }
};

}  // namespace decoct::cuda
