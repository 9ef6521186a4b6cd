// Squared norms of the weight and bias gradients of each image alone, none of which is stored:
//
//   s_i = |G_i|^2,  G_i[o, k] = sum_t d_i[o, t] a_i[patch k of t]      a (N, C, H, W), d (N, P, T), G (P, D)
//   b_i = |sum_t d_i[., t]|^2
//
//   T = 1        |d_i|^2 |patch_i|^2: a block reads an image, N (C + P) numbers; memory bandwidth is the
//   bound otherwise    2 N T D P operations: a block forms a tile of G_i as class gradients do, squares it on
//   chip
//                and leaves one number; their bytes and bound, but for G, which is not written
//
// A second kernel adds an image's tiles in their order.
#pragma once
#include "class_gradients.cuh"
#include "reduce.cuh"

namespace decoct::cuda {

// Of a tile of an image: squares of the weight's part and of the bias's.
struct TileSquares {
  double weight, bias;
};

template <class A>
constexpr int squares_shared() {
  return outer_shared<A>() + kWarps * (int)sizeof(double) + 16;
}

template <class A>
DECOCT_KERNEL squares_kernel(OuterProblem<typename A::T> p, bool wants_bias, TileSquares* squares) {
  using Block = OuterBlock<A>;
  using T = typename A::T;
  using Tile = typename Block::Tile;
  Shared shared;
  double* partial = shared.take<double>(kWarps);
  const int tiles = p.groups * p.output_tiles * p.patch_tiles, image = block_index() / tiles;
  Block block(p, OuterTask{0, image, image + 1, -1}, shared, block_index() % tiles);
  const bool with_bias = wants_bias && block.first_column == 0;
  T bias[Block::kLeft] = {}, sums[Tile::kM][Tile::kN][4] = {};
  add_positions<A>(block, with_bias, sums, bias);
  // Outputs and columns that do not exist are zero.
  double weight = 0, of_bias = 0;
#pragma unroll
  for (int m = 0; m < Tile::kM; ++m)
#pragma unroll
    for (int n = 0; n < Tile::kN; ++n) {
      T part = 0;
#pragma unroll
      for (int e = 0; e < 4; ++e) part += sums[m][n][e] * sums[m][n][e];
      weight += (double)part;
    }
  weight = block_sum(weight, partial);
  if (with_bias) {
    const double of_thread = block.bias_of_thread(bias);
    of_bias = block_sum(of_thread * of_thread, partial);
  }
  if (thread_index() == 0) squares[block_index()] = {weight, of_bias};
}

// An image a thread.
template <class T>
DECOCT_KERNEL add_squares_kernel(const TileSquares* squares, int tiles, int64_t images, T* weight,
                                 int64_t weight_stride, T* bias, int64_t bias_stride) {
  const int64_t image = (int64_t)block_index() * kThreads + thread_index();
  if (image >= images) return;
  double of_weight = 0, of_bias = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    of_weight += squares[image * tiles + tile].weight;
    of_bias += squares[image * tiles + tile].bias;
  }
  weight[image * weight_stride] = (T)of_weight;
  if (bias) bias[image * bias_stride] = (T)of_bias;
}

// Images of one position: a block each.
template <class T>
DECOCT_KERNEL single_squares_kernel(OuterProblem<T> p, T* weight, int64_t weight_stride, T* bias,
                                    int64_t bias_stride) {
  Shared shared;
  double* partial = shared.take<double>(kWarps);
  const int64_t image = block_index();
  double total = 0, of_bias = 0;
  for (int group = 0; group < p.groups; ++group) {
    double d = 0, a = 0;
    with_numbers<T>(p.d, [&](const auto* numbers, auto widen) {
      for (int o = thread_index(); o < p.outputs; o += kThreads) {
        const double value =
            (double)widen(numbers[image * p.d.image + (int64_t)(group * p.outputs + o) * p.d.channel]);
        d += value * value;
      }
    });
    with_numbers<T>(p.a, [&](const auto* numbers, auto widen) {
      for (int k = thread_index(); k < p.patch; k += kThreads) {
        const int taps = p.kernel[0] * p.kernel[1];
        const int y = k % taps / p.kernel[1] * p.dilation[0] - p.padding[0];
        const int x = k % taps % p.kernel[1] * p.dilation[1] - p.padding[1];
        if (y < 0 || y >= p.height || x < 0 || x >= p.width) continue;
        const double value =
            (double)widen(numbers[image * p.a.image + (int64_t)(group * p.channels + k / taps) * p.a.channel +
                                  (int64_t)y * p.a.row + (int64_t)x * p.a.column]);
        a += value * value;
      }
    });
    d = block_sum(d, partial);
    a = block_sum(a, partial);
    total += d * a;
    of_bias += d;
  }
  if (thread_index() != 0) return;
  weight[image * weight_stride] = (T)total;
  if (bias) bias[image * bias_stride] = (T)of_bias;
}

}  // namespace decoct::cuda
