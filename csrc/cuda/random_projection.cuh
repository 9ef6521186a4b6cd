// Products with a matrix S of random signs that is nowhere stored; csrc/cpu/random_projection.inl says which.
//
//   operations  2 N D K for the product (three times that in 3xTF32); for each tile of 64 x 64 and 128 steps
//   of
//               the depth, Philox once in half of the threads
//   bytes       a number of x is read once for each 64 columns of out, from cache; out is written once
//   bound       the product
//
// A block owns a tile of out, 64 x 64 (32 x 64 in float64), and runs along the depth. Signs stand in shared
// memory as bits, 128 of a row of S in a counter's four words, made one step before they are read; on their
// way to the product's tile they become 1 or -1, which every arithmetic holds exactly.
#pragma once
#include "../philox.h"
#include "pair_product.cuh"

namespace decoct::cuda {

template <class T>
struct ProjectionView {
  Source x;
  T* out;
  int64_t out_stride;
  uint64_t seed, stream;
  T factor;
  int32_t rows, depth, columns, transposed;
};

constexpr int kSignsOfCounter = 128, kWordsOfCounter = 4;

// The right operand of a block's product: columns of out from `first` on, of which the tile has 64.
template <class A>
struct Signs {
  using T = typename A::T;
  using Product = PairProduct<A>;
  static constexpr int kColumns = Product::Tile::kColumns, kStep = Product::kStep;
  static constexpr int kWords = 2 * kColumns * kWordsOfCounter;  // of two stages
  static_assert(kSignsOfCounter % kColumns == 0 && kSignsOfCounter % kStep == 0 && kStep <= kColumns);

  const ProjectionView<T>& v;
  uint32_t* words;
  int first;

  // Of row j of S: counter `block`, to place `at` of a stage.
  DECOCT_DEVICE void make(int stage, int at, int block, int j) const {
    uint32_t c[kWordsOfCounter] = {(uint32_t)block, (uint32_t)j, (uint32_t)v.stream,
                                   (uint32_t)(v.stream >> 32)};
    philox(c, v.seed, [](uint32_t m, uint32_t w) { return (uint32_t)((uint64_t)m * w >> 32); });
#pragma unroll
    for (int q = 0; q < kWordsOfCounter; ++q) words[(stage * kColumns + at) * kWordsOfCounter + q] = c[q];
  }

  // What the steps from `begin` on need, where those before do not have it.
  DECOCT_DEVICE void prepare(int begin) const {
    const int t = thread_index();
    if (v.transposed) {
      if (t < kStep) make(begin / kStep % 2, t, first / kSignsOfCounter, begin + t);
    } else if (begin % kSignsOfCounter == 0) {
      const int block = begin / kSignsOfCounter;
      if (t < kColumns) make(block % 2, t, block, first + t);
    }
  }

  DECOCT_DEVICE T sign(int stage, int at, int d) const {
    const uint32_t word = words[(stage * kColumns + at) * kWordsOfCounter + d / 32 % kWordsOfCounter];
    return word >> d % 32 & 1 ? T(-1) : T(1);
  }

  DECOCT_DEVICE void fetch(int begin, T (&numbers)[Product::Right::kCount]) const {
    const typename Product::Right share(false);
#pragma unroll
    for (int s = 0; s < Product::Right::kCount; ++s) {
      const int column = share.row + s * share.row_step, k = share.k + s * share.k_step;
      numbers[s] = v.transposed ? sign(begin / kStep % 2, k, first + column)
                                : sign(begin / kSignsOfCounter % 2, column, begin + k);
    }
    prepare(begin + kStep);
  }
};

template <class A>
constexpr int projection_shared() {
  return 2 * PairProduct<A>::kStage * (int)sizeof(typename A::Point) + Signs<A>::kWords * 4;
}

template <class A>
DECOCT_KERNEL random_projection_kernel(ProjectionView<typename A::T> v) {
  using T = typename A::T;
  using Product = PairProduct<A>;
  using Tile = typename Product::Tile;
  Shared shared;
  auto* stages = shared.take<typename A::Point>(2 * Product::kStage);
  const int tiles = (v.columns + Tile::kColumns - 1) / Tile::kColumns;
  const int row = block_index() / tiles * Tile::kRows, column = block_index() % tiles * Tile::kColumns;
  const Signs<A> signs{v, shared.take<uint32_t>(Signs<A>::kWords), column};
  signs.prepare(0);
  sync_block();
  T sums[Tile::kM][Tile::kN][4] = {};
  Product::add(
      stages, by_rows<T>(v.x, row, v.rows - row), false,
      [&](int begin, T(&numbers)[Product::Right::kCount]) { signs.fetch(begin, numbers); }, v.depth, sums);
  Tile::each(sums, [&](int i, int j, T sum) {
    if (row + i < v.rows && column + j < v.columns)
      v.out[(row + i) * v.out_stride + column + j] = v.factor * sum;
  });
}

}  // namespace decoct::cuda
