// Weighted means of cos t_ij and sin t_ij over the rows i of every segment, t_ij = <x_i, f_j>, and
// derivatives. The formulae stand in csrc/cpu/characteristic_mean.inl.
//
//   operations   2 N F D for each product: value 1; grad 1, and 1 for each of x and f; second 1, 1 for each
//                tangent, and up to 2 for each of x and f; three times that in 3xTF32. A sine and a cosine of
//                each pair, some 30 instructions
//   bytes        a number of x is read F / 64 times, one of f N / 64 times, nearly all from cache; of
//   derivatives
//                also the weights of a panel of 1024 x 4096 pairs, written once and read D / 64 times for
//                each side
//   bound        the products: N = 1024, F = 4096, D = 2048: 17.2 Gflop each, in 3xTF32 0.33 ms on A100
//
// Where the caller keeps the products t of a value, grad does not compute them again.
//
// A panel of pairs is worked on at a time, by three kernels: one whose blocks own a tile of 64 x 64 pairs (32
// x 64 in float64) from the scores to the weights and to its sums over rows and columns; one whose blocks own
// a tile of a derivative and run along the panel; and one that adds the tiles' sums in their order. All
// operands are read where the caller has them, in any type and stride, on their way to shared memory through
// registers.
#pragma once
#include "pair_product.cuh"
#include "trigonometry.cuh"

namespace decoct::cuda {

constexpr int kPanelRows = 1024, kPanelColumns = 4096;

constexpr int kHalves = 2;  // of the rows of a tile: a thread has a column of one
constexpr int kTilePitch = 65;

template <class T>
struct CharacteristicView {
  Source x, f, x_tangents, f_tangents;  // data == nullptr: none
  const T *w, *h;                       // h == nullptr: zero
  int64_t w_stride, h_stride;
  const T *bar_cosine, *bar_sine;  // nullptr: zero
  int64_t bar_cosine_stride, bar_sine_stride;
  const int64_t* offsets;
  T *cosine, *sine, *out_x, *out_f, *out_w;
  int64_t cosine_stride, sine_stride, out_w_stride;
  T* products;                   // t of all pairs, to be kept with a value, known for grad; nullptr: neither
  T *weights, *tangent_weights;  // of a panel, rows kPanelColumns apart
  double *sums, *tile_sums;      // over rows: (segments, 2, columns); (half tiles, first or last, 2, columns)
  double *row_sums, *tile_row_sums;  // over columns: (N); (tile columns, rows). nullptr: not wanted
  int32_t segments, dim, rows, columns;
  int32_t i, j, panel_rows, panel_columns;  // the panel: its first row and column, and how many there are
};

// Stages of a product, then in their place tiles of scores.
template <class A>
constexpr int pair_shared(int tiles) {
  using Product = PairProduct<A>;
  const int stages = 2 * Product::kStage * (int)sizeof(typename A::Point);
  const int kept = tiles * Product::Tile::kRows * kTilePitch * (int)sizeof(typename A::T);
  return ((stages > kept ? stages : kept) + 15) / 16 * 16;
}

// The segment of a row: the last one that begins there or before.
template <class T>
DECOCT_DEVICE int segment_of(const CharacteristicView<T>& v, int row) {
  int low = 0, high = v.segments;
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (v.offsets[middle] <= row)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// use(segment, begin, end) for the pieces of segments among rows [begin, end) of x.
template <class T, class Use>
DECOCT_DEVICE void over_pieces(const CharacteristicView<T>& v, int begin, int end, Use use) {
  if (begin >= end) return;
  for (int s = segment_of(v, begin), at = begin; at < end; ++s) {
    const int stop = v.offsets[s + 1] < end ? (int)v.offsets[s + 1] : end;
    if (stop > at) use(s, at, stop);
    at = stop;
  }
}

// Of half a tile's first segment, or of its last: sums of cosines, then of sines.
template <class T>
DECOCT_DEVICE double* tile_sums_of(const CharacteristicView<T>& v, int half_tile, bool last) {
  return v.tile_sums + (int64_t)(2 * half_tile + last) * 2 * kPanelColumns;
}

template <class A, CharacteristicOp Kind>
struct PairTile {
  using T = typename A::T;
  using Tile = typename PairProduct<A>::Tile;
  static constexpr bool kValue = Kind == CharacteristicOp::value, kSecond = Kind == CharacteristicOp::second;
  static constexpr int kHalf = Tile::kRows / kHalves;

  const CharacteristicView<T>& v;
  T *scores, *tangents;  // in shared memory
  int row, column;       // the first, within the panel

  // A column of half the rows: sine and cosine, sums over the rows of each piece, weights.
  DECOCT_DEVICE void run() const {
    const int half = thread_index() / Tile::kColumns, c = thread_index() % Tile::kColumns, j = column + c;
    const int begin = row + half * kHalf, end = begin + kHalf < v.panel_rows ? begin + kHalf : v.panel_rows;
    if (j >= v.panel_columns) return;
    over_pieces(v, v.i + begin, v.i + end, [&](int s, int first, int stop) {
      double cosines = 0, sines = 0;
      T by_cosine = 0, by_sine = 0;
      if constexpr (!kValue) {
        if (v.bar_cosine) by_cosine = v.bar_cosine[s * v.bar_cosine_stride + v.j + j];
        if (v.bar_sine) by_sine = v.bar_sine[s * v.bar_sine_stride + v.j + j];
      }
      for (int i = first; i < stop; ++i) {
        const int r = i - v.i;
        T* score = scores + (r - row) * kTilePitch + c;
        const SineCosine<T> at = sine_cosine(*score);
        const T w = v.w[i * v.w_stride];
        if constexpr (kValue) {
          cosines += (double)(w * at.cosine);
          sines += (double)(w * at.sine);
        } else {
          const T slope = by_sine * at.cosine - by_cosine * at.sine;
          const T level = by_cosine * at.cosine + by_sine * at.sine;
          T* weight = v.weights + (int64_t)r * kPanelColumns + j;
          if constexpr (kSecond) {
            const T tau = tangents[(r - row) * kTilePitch + c], h = v.h ? v.h[i * v.h_stride] : T(0);
            cosines += (double)(h * at.cosine - w * tau * at.sine);
            sines += (double)(h * at.sine + w * tau * at.cosine);
            *weight = h * slope - w * tau * level;
            v.tangent_weights[(int64_t)r * kPanelColumns + j] = w * slope;
            *score = slope * tau;
          } else {
            *weight = w * slope;
            *score = level;
          }
        }
      }
      if (!v.sums) return;
      // The pieces in the middle are whole segments, the others may have parts in other tiles.
      const bool inside = first != v.i + begin && stop != v.i + end;
      double* to = inside ? v.sums + (int64_t)s * 2 * kPanelColumns
                          : tile_sums_of(v, row / kHalf + half, first != v.i + begin);
      to[j] = cosines;
      to[kPanelColumns + j] = sines;
    });
  }

  // Of what run() left in place of the scores.
  DECOCT_DEVICE void add_rows() const {
    const int r = thread_index(), columns = v.panel_columns - column;
    if (r >= Tile::kRows || row + r >= v.panel_rows) return;
    double total = 0;
    for (int c = 0; c < Tile::kColumns && c < columns; ++c) total += (double)scores[r * kTilePitch + c];
    v.tile_row_sums[(int64_t)(column / Tile::kColumns) * kPanelRows + row + r] = total;
  }
};

template <class A, CharacteristicOp Kind>
DECOCT_KERNEL characteristic_kernel(CharacteristicView<typename A::T> v) {
  using T = typename A::T;
  using Product = PairProduct<A>;
  using Tile = typename Product::Tile;
  constexpr bool second = Kind == CharacteristicOp::second;
  Shared shared;
  char* memory = shared.take<char>(pair_shared<A>(second ? 2 : 1));
  auto* stages = (typename A::Point*)memory;
  const int tiles = (v.panel_columns + Tile::kColumns - 1) / Tile::kColumns;
  const int row = block_index() / tiles * Tile::kRows, column = block_index() % tiles * Tile::kColumns;
  const Operand<T> x = by_rows<T>(v.x, v.i + row, v.panel_rows - row);
  const Operand<T> f = by_rows<T>(v.f, v.j + column, v.panel_columns - column);
  T scores[Tile::kM][Tile::kN][4] = {}, tangents[Tile::kM][Tile::kN][4] = {};
  const bool known = Kind == CharacteristicOp::grad && v.products;
  if (!known) Product::add(stages, x, f, v.dim, scores);
  if constexpr (second) {
    if (v.x_tangents.data)
      Product::add(stages, by_rows<T>(v.x_tangents, v.i + row, v.panel_rows - row), f, v.dim, tangents);
    if (v.f_tangents.data)
      Product::add(stages, x, by_rows<T>(v.f_tangents, v.j + column, v.panel_columns - column), v.dim,
                   tangents);
  }
  const PairTile<A, Kind> tile{v, (T*)memory, (T*)memory + Tile::kRows * kTilePitch, row, column};
  Tile::each(scores, [&](int i, int j, T sum) {
    T* kept = v.products ? v.products + (int64_t)(v.i + row + i) * v.columns + v.j + column + j : nullptr;
    const bool there = kept && row + i < v.panel_rows && column + j < v.panel_columns;
    if (known) sum = there ? *kept : T(0);
    if (Kind == CharacteristicOp::value && there) *kept = sum;
    tile.scores[i * kTilePitch + j] = sum;
  });
  if constexpr (second)
    Tile::each(tangents, [&](int i, int j, T sum) { tile.tangents[i * kTilePitch + j] = sum; });
  sync_block();
  tile.run();
  if (Kind == CharacteristicOp::value || !v.tile_row_sums) return;
  sync_block();
  tile.add_rows();
}

// Weights of the panel times the frequencies, added to the derivative by x, or transposed times the rows, to
// that by the frequencies; with tangents another such product.
template <class A>
DECOCT_KERNEL characteristic_product_kernel(CharacteristicView<typename A::T> v, int by_x) {
  using T = typename A::T;
  using Product = PairProduct<A>;
  using Tile = typename Product::Tile;
  Shared shared;
  auto* stages = (typename A::Point*)shared.take<char>(pair_shared<A>(0));
  const int tiles = (v.dim + Tile::kColumns - 1) / Tile::kColumns;
  const int row = block_index() / tiles * Tile::kRows, d = block_index() % tiles * Tile::kColumns;
  const int rows = (by_x ? v.panel_rows : v.panel_columns) - row;
  const int depth = by_x ? v.panel_columns : v.panel_rows;
  const DType type = sizeof(T) == 8 ? DType::float64 : DType::float32;
  const int64_t row_step = by_x ? kPanelColumns : 1, k_step = by_x ? 1 : kPanelColumns;
  T sums[Tile::kM][Tile::kN][4] = {};
  const auto add = [&](const T* weights, const Source& points) {
    const Operand<T> left{weights, type, row * row_step, row_step, k_step, rows, !by_x};
    Product::add(stages, left, by_columns<T>(points, by_x ? v.j : v.i, d, v.dim - d), depth, sums);
  };
  add(v.weights, by_x ? v.f : v.x);
  const Source& moved = by_x ? v.f_tangents : v.x_tangents;
  if (moved.data) add(v.tangent_weights, moved);
  T* out = (by_x ? v.out_x : v.out_f) + (int64_t)((by_x ? v.i : v.j) + row) * v.dim + d;
  Tile::each(sums, [&](int i, int k, T sum) {
    if (i < rows && d + k < v.dim) out[(int64_t)i * v.dim + k] += sum;
  });
}

// The sums of tiles to those of segments, by the first blocks, and to those of rows, by the others; and where
// the panel is the last of its columns or rows, the results.
template <class T>
DECOCT_KERNEL characteristic_sums_kernel(CharacteristicView<T> v, int blocks_of_columns) {
  constexpr int half = tile_rows(pair_shape<T>) / kHalves, width = tile_columns(pair_shape<T>);
  if (block_index() < blocks_of_columns) {
    const int j = block_index() * kThreads + thread_index();
    if (j >= v.panel_columns) return;
    for (int row = 0; row < v.panel_rows; row += half) {
      const int begin = v.i + row, end = v.i + (row + half < v.panel_rows ? row + half : v.panel_rows);
      over_pieces(v, begin, end, [&](int s, int first, int stop) {
        if (first != begin && stop != end) return;
        const double* from = tile_sums_of(v, row / half, first != begin);
        double* to = v.sums + (int64_t)s * 2 * kPanelColumns;
        to[j] += from[j];
        to[kPanelColumns + j] += from[kPanelColumns + j];
      });
    }
    if (v.i + v.panel_rows < v.rows) return;
    for (int s = 0; s < v.segments; ++s) {
      const double* from = v.sums + (int64_t)s * 2 * kPanelColumns;
      v.cosine[s * v.cosine_stride + v.j + j] = (T)from[j];
      v.sine[s * v.sine_stride + v.j + j] = (T)from[kPanelColumns + j];
    }
    return;
  }
  const int r = (block_index() - blocks_of_columns) * kThreads + thread_index();
  if (r >= v.panel_rows) return;
  double total = v.row_sums[v.i + r];
  for (int c = 0; c * width < v.panel_columns; ++c) total += v.tile_row_sums[(int64_t)c * kPanelRows + r];
  v.row_sums[v.i + r] = total;
  if (v.j + v.panel_columns == v.columns) v.out_w[(v.i + r) * v.out_w_stride] = (T)total;
}

}  // namespace decoct::cuda
