// Inner products of the weight gradients of single images, of which no more than tiles are ever stored:
//
//   K_ij = <G_i, H_j>,  G_i[o, k] = sum_t d_i[o, t] a_i[patch k of t]      x: a (N, C, H, W), d (N, P, T)
//                       H_j: the same of b and e                           y: b (M, C, ., .), e (M, P, S)
//   and with a bias + <sum_t d_it, sum_s e_js>
//
//   T = S = 1    (<patch_i, patch_j> + 1) <d_i, e_j>: 2 N M (D + P) operations, both products of a 64 x 64
//                tile (32 x 64 in float64) in registers; a number is read from cache N / 64 or M / 64 times
//   otherwise    2 (N T + M S) D P + 2 N M D P: tiles of all G_i and H_j, as class gradients are, to scratch
//                of some 64 MiB whatever P D is, then K += G H^T of these tiles, their columns dealt to
//                several blocks for each tile of K, whose sums are added at the end in their order
//   bound        the products
//
// Where y is x, tiles of K on and above the diagonal are formed, and mirrored.
#pragma once
#include "class_gradients.cuh"

namespace decoct::cuda {

template <class T>
struct GramProblem {
  OuterProblem<T> x, y;
  T* gram;
  int64_t stride;
  int32_t n, m;
  int32_t self, bias;
};

// A tile of K: where it begins, and whether it is wanted.
template <class A>
struct GramTile {
  using T = typename A::T;
  using Tile = ScoreTile<outer_shape<T>>;
  int row, column;

  DECOCT_DEVICE GramTile(const GramProblem<T>& p, int tile) {
    const int columns = (p.m + Tile::kColumns - 1) / Tile::kColumns;
    row = tile / columns * Tile::kRows;
    column = tile % columns * Tile::kColumns;
  }
  DECOCT_DEVICE bool below(const GramProblem<T>& p) const { return p.self && column + Tile::kColumns <= row; }
  // use(i, j, element) of this thread's.
  template <class Use>
  DECOCT_DEVICE void each(const GramProblem<T>& p, T (&sums)[Tile::kM][Tile::kN][4], Use use) const {
    Tile::each(sums, [&](int i, int j, T sum) {
      if (row + i < p.n && column + j < p.m) use(row + i, column + j, sum);
    });
  }
};

template <class T>
DECOCT_DEVICE void write_gram(const GramProblem<T>& p, int i, int j, T value) {
  if (p.self && j < i) return;
  p.gram[i * p.stride + j] = value;
  if (p.self && j > i) p.gram[j * p.stride + i] = value;
}

// ---- One position: rows of patches and of gradients, multiplied where they are.

template <class A>
constexpr int gram_stage() {
  using Tile = ScoreTile<outer_shape<typename A::T>>;
  return (Tile::kRows + Tile::kColumns) * row_pitch<typename A::Point>(kOuterStep<typename A::Point>);
}
template <class A>
constexpr int single_gram_shared() {
  return gram_stage<A>() * (int)sizeof(typename A::Point) +
         2 * kOuterStep<typename A::Point> * (int)sizeof(int64_t) + 32;
}

// Where numbers k .. k + step of a patch, or of the gradients, are in an image; -1: outside.
template <class T>
DECOCT_DEVICE void set_numbers(const OuterProblem<T>& p, bool patches, int group, int first, int step,
                               int64_t* places) {
  const int k = thread_index(), number = first + k;
  if (k >= step) return;
  places[k] = -1;
  if (!patches) {
    if (number < p.outputs) places[k] = (int64_t)(group * p.outputs + number) * p.d.channel;
    return;
  }
  const int taps = p.kernel[0] * p.kernel[1], tap = number % taps;
  const int y = tap / p.kernel[1] * p.dilation[0] - p.padding[0];
  const int x = tap % p.kernel[1] * p.dilation[1] - p.padding[1];
  if (number < p.patch && y >= 0 && y < p.height && x >= 0 && x < p.width)
    places[k] = (int64_t)(group * p.channels + number / taps) * p.a.channel + (int64_t)y * p.a.row +
                (int64_t)x * p.a.column;
}

template <class A, int Rows>
DECOCT_DEVICE void load_numbers(const OuterImages& m, int first, int images, const int64_t* places,
                                typename A::Point* tile) {
  using T = typename A::T;
  constexpr int step = kOuterStep<typename A::Point>;
  with_numbers<T>(m, [&](const auto* numbers, auto widen) {
    OuterShare<Rows, step, false>().each([&](int, int row, int k) {
      const bool there = places[k] >= 0 && first + row < images;
      const T value = there ? widen(numbers[(int64_t)(first + row) * m.image + places[k]]) : T(0);
      tile[row * row_pitch<typename A::Point>(step) + k] = A::point(A::weight(value));
    });
  });
}

// sums += the products of `count` numbers of each image.
template <class A>
DECOCT_DEVICE void add_numbers(const GramProblem<typename A::T>& p, const GramTile<A>& at, bool patches,
                               int group, typename A::Point* stage, int64_t* places,
                               typename A::T (&sums)[GramTile<A>::Tile::kM][GramTile<A>::Tile::kN][4]) {
  using Tile = typename GramTile<A>::Tile;
  constexpr int step = kOuterStep<typename A::Point>, pitch = row_pitch<typename A::Point>(step);
  typename A::Point *left = stage, *right = stage + Tile::kRows * pitch;
  const int count = patches ? p.x.patch : p.x.outputs;
  for (int first = 0; first < count; first += step) {
    set_numbers(p.x, patches, group, first, step, places);
    set_numbers(p.y, patches, group, first, step, places + step);
    sync_block();
    load_numbers<A, Tile::kRows>(patches ? p.x.a : p.x.d, at.row, p.n, places, left);
    load_numbers<A, Tile::kColumns>(patches ? p.y.a : p.y.d, at.column, p.m, places + step, right);
    sync_block();
    // Numbers of the next step are stored after another barrier, which comes after these products.
    A::multiply_rows(sums, left + Tile::row() * pitch, pitch, right + Tile::column() * pitch, pitch, step);
  }
}

template <class A>
DECOCT_KERNEL single_gram_kernel(GramProblem<typename A::T> p) {
  using T = typename A::T;
  using Tile = typename GramTile<A>::Tile;
  Shared shared;
  auto* stage = shared.take<typename A::Point>(gram_stage<A>());
  auto* places = shared.take<int64_t>(2 * kOuterStep<typename A::Point>);
  const GramTile<A> at(p, block_index());
  if (at.below(p)) return;
  T total[Tile::kM][Tile::kN][4] = {};
  for (int group = 0; group < p.x.groups; ++group) {
    T patches[Tile::kM][Tile::kN][4] = {}, gradients[Tile::kM][Tile::kN][4] = {};
    add_numbers<A>(p, at, true, group, stage, places, patches);
    add_numbers<A>(p, at, false, group, stage, places, gradients);
    const T one = p.bias ? T(1) : T(0);
#pragma unroll
    for (int m = 0; m < Tile::kM; ++m)
#pragma unroll
      for (int n = 0; n < Tile::kN; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) total[m][n][e] += (patches[m][n][e] + one) * gradients[m][n][e];
  }
  at.each(p, total, [&](int i, int j, T value) { write_gram(p, i, j, value); });
}

// ---- Several positions: tiles of gradients, and their products.

// Numbers of a tile of one image's gradient: the weight's, then the bias's.
template <class T>
constexpr int kTileNumbers =
    tile_rows(outer_shape<T>) * tile_columns(outer_shape<T>) + tile_rows(outer_shape<T>);

// Tiles [first, first + tiles) of every image, (images, tiles, kTileNumbers).
template <class A>
DECOCT_KERNEL instantiate_kernel(OuterProblem<typename A::T> p, bool wants_bias, int first, int tiles,
                                 typename A::Point* out) {
  using Block = OuterBlock<A>;
  using T = typename A::T;
  using Tile = typename Block::Tile;
  Shared shared;
  const int image = block_index() / tiles;
  Block block(p, OuterTask{0, image, image + 1, -1}, shared, first + block_index() % tiles);
  const bool with_bias = wants_bias && block.first_column == 0;
  T bias[Block::kLeft] = {}, sums[Tile::kM][Tile::kN][4] = {};
  add_positions<A>(block, with_bias, sums, bias);
  typename A::Point* to = out + (int64_t)block_index() * kTileNumbers<T>;
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int m = 0; m < Tile::kM; ++m)
#pragma unroll
    for (int n = 0; n < Tile::kN; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = Tile::row() + m * 16 + h * 8 + g, column = Tile::column() + n * 8 + 2 * t;
        A::store(to + row * Tile::kColumns + column, A::weight(sums[m][n][2 * h]),
                 A::weight(sums[m][n][2 * h + 1]));
      }
  const double of_thread = with_bias ? block.bias_of_thread(bias) : 0.0;
  if (thread_index() < Tile::kRows)
    to[Tile::kRows * Tile::kColumns + thread_index()] = A::point(A::weight((T)of_thread));
}

template <class A>
constexpr int tile_gram_shared() {
  using Tile = ScoreTile<outer_shape<typename A::T>>;
  return kStages * (Tile::kRows + Tile::kColumns) * row_pitch<typename A::Point>(kStep<typename A::Point>) *
             (int)sizeof(typename A::Point) +
         16;
}

// Rows of both sides: (images, length).
template <class Point>
struct GramRows {
  const Point *left, *right;
  int32_t length, splits;
};

// A tile of K and a part of the numbers of a row: slabs[part] (+)= left right^T.
template <class A>
DECOCT_KERNEL tile_gram_kernel(GramProblem<typename A::T> p, GramRows<typename A::Point> rows, bool add,
                               typename A::T* slabs) {
  using T = typename A::T;
  using Point = typename A::Point;
  using Tile = typename GramTile<A>::Tile;
  constexpr int step = kStep<Point>, pitch = row_pitch<Point>(step);
  constexpr int stage = (Tile::kRows + Tile::kColumns) * pitch;
  Shared shared;
  Point* stages = shared.take<Point>(kStages * stage);
  const GramTile<A> at(p, block_index() / rows.splits);
  if (at.below(p)) return;
  const int split = block_index() % rows.splits, steps = (rows.length + step - 1) / step;
  const int begin = (int)((int64_t)split * steps / rows.splits);
  const int end = (int)((int64_t)(split + 1) * steps / rows.splits);
  const Point* left = rows.left + (int64_t)at.row * rows.length;
  const Point* right = rows.right + (int64_t)at.column * rows.length;
  const auto load = [&](int k) {
    Point* to = stages + k % kStages * stage;
    load_tile<step, Tile::kRows>(to, pitch, left, rows.length, p.n - at.row, k * step, rows.length);
    load_tile<step, Tile::kColumns>(to + Tile::kRows * pitch, pitch, right, rows.length, p.m - at.column,
                                    k * step, rows.length);
  };
  T sums[Tile::kM][Tile::kN][4] = {};
  for (int k = begin; k < begin + kStages - 1; ++k) {
    if (k < end) load(k);
    commit_copies();
  }
  for (int k = begin; k < end; ++k) {
    wait_copies<kStages - 2>();
    sync_block();
    if (k + kStages - 1 < end) load(k + kStages - 1);
    commit_copies();
    const Point* from = stages + k % kStages * stage;
    A::multiply_rows(sums, from + Tile::row() * pitch, pitch, from + (Tile::kRows + Tile::column()) * pitch,
                     pitch, step);
  }
  wait_copies<0>();
  T* slab = slabs + (int64_t)split * p.n * p.m;
  at.each(p, sums, [&](int i, int j, T value) {
    T* to = slab + (int64_t)i * p.m + j;
    *to = add ? *to + value : value;
  });
}

// An element of K a thread.
template <class T>
DECOCT_KERNEL add_slabs_kernel(GramProblem<T> p, int splits, const T* slabs) {
  const int64_t at = (int64_t)block_index() * kThreads + thread_index();
  if (at >= (int64_t)p.n * p.m) return;
  const int i = (int)(at / p.m), j = (int)(at % p.m);
  if (p.self && j < i) return;
  T total = T(0);
  for (int split = 0; split < splits; ++split) total += slabs[(int64_t)split * p.n * p.m + at];
  write_gram(p, i, j, total);
}

}  // namespace decoct::cuda
