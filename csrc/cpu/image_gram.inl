// Inner products of the weight gradients of single images, of which no more than a tile is ever stored:
//
//   K_ij = <G_i, H_j>,  G_i[o, k] = sum_t d_i[o, t] a_i[patch k of t]      x: a (N, C, H, W), d (N, P, T)
//                       H_j: the same of b and e                           y: b (M, C, ., .), e (M, P, S)
//   and with a bias + <sum_t d_it, sum_s e_js>
//
// Two forms, of which the one with fewer operations is taken, G being (P, D):
//
//   factored      sum_ts (<patch_it, patch_js> + 1) <d_it, e_js>, 2 N M T S (D + P) operations: a product of
//                 tiles of two products, neither of which is written. y is packed once, M S (D + P) numbers
//   instantiated  2 (N T + M S) D P + 2 N M D P: tile after tile of all G_i and H_j, as class gradients are,
//                 into scratch of some 24 MiB whatever P D is; K += G H^T of the tile
//
// Bytes: a, d, b and e once, or, instantiated, as often as class_gradients.inl reads them; K once, or, as
// scratch, once for each tile. Bound: the multiply-adds.
//
// Where y is x, the half above the diagonal is formed, and mirrored. Blocks of K are tasks, which also own
// what they mirror. All of y passes a block of rows: where a row of y is one position, blocks have as many
// rows as do not leave the cache, and share the columns. Their sizes, and the order of all sums, depend on
// shapes only.
#pragma once
#include "gemm_tile.h"
#include "patches.inl"

namespace decoct {
namespace DECOCT_ISA {

constexpr int64_t kTileBytes = int64_t{24} << 20;   // of instantiated gradients
constexpr int64_t kLeastRows = 16, kMostRows = 64;  // of a block of K
constexpr int64_t kGramTasks = 8;

template <class T>
struct GramShape {
  OuterShape<T> x, y;
  int64_t n, m, outputs, patch, groups;  // outputs, patch: of one group
  int64_t x_positions, y_positions;
  bool factored;
  int64_t row_images, row_blocks;  // images of a block of K's rows
  int64_t column_parts;            // factored: of such a block, tasks
  int64_t columns, panels;         // of K, padded; factored: columns are positions
  int64_t tiles, length;           // instantiated: of a group, and the most numbers of a tile
  int64_t patch_pitch,
      output_pitch;  // of packed rows: rows a power of two apart fight for few sets of the cache

  explicit GramShape(const ImageGramArguments& a) : x(outer_of(a.x)), y(outer_of(a.self ? a.x : a.y)) {
    const LayerPair& other = a.self ? a.x : a.y;
    n = a.x.activations.count;
    m = other.activations.count;
    outputs = x.outputs;
    patch = x.channels * x.taps;
    groups = a.x.convolution.groups;
    x_positions = a.x.gradients.height * a.x.gradients.width;
    y_positions = other.gradients.height * other.gradients.width;
    const double pairs = (double)n * (double)m, product = (double)outputs * (double)patch;
    const double t = (double)x_positions, s = (double)y_positions;
    factored =
        pairs * t * s * (double)(outputs + patch) < ((double)n * t + (double)m * s + pairs) * product ||
        x_positions * y_positions <= 1;
    const int64_t x_rows = factored ? larger(x_positions, 1) : 1;
    const bool shared_columns = factored && y_positions == 1;
    const int64_t rows =
        shared_columns ? kMostRows : larger(smaller(n * x_rows / kGramTasks, kMostRows), kLeastRows);
    row_images = larger(rows / x_rows, 1);
    row_blocks = ceil_div(n, row_images);
    columns = round_up(factored ? m * y_positions : m, width<T>);
    panels = ceil_div(columns, panel<T>);
    column_parts =
        shared_columns ? smaller(ceil_div(kGramTasks, larger(row_blocks, 1)), larger(panels, 1)) : 1;
    const int64_t most = kTileBytes / (int64_t)sizeof(T) / larger(n + m, 1) / (panel<T> * x.taps);
    const int64_t block = larger(smaller(smaller(x.block, y.block), most), 1);
    x.set_block(block);
    y.set_block(block);
    tiles = x.blocks * x.panels;
    length = x.sums + panel<T>;  // and the bias
    patch_pitch = round_up(patch, width<T>) + width<T>;
    output_pitch = round_up(outputs, width<T>) + width<T>;
  }

  int64_t block_rows() const { return row_images * x_positions; }
};

// What all tasks share.
template <class T>
struct GramMemory {
  T *patches, *gradients;  // factored: (panels, patch, panel) and (panels, outputs, panel) of y
  T *left, *right, *sums;  // instantiated: (n, length) of x, (panels, length, panel) of y, (n, columns)

  GramMemory(const GramShape<T>& s, Arena& arena) {
    const int64_t whole = s.panels * panel<T>;
    patches = arena.take<T>(s.factored ? whole * s.patch : 0);
    gradients = arena.take<T>(s.factored ? whole * s.outputs : 0);
    left = arena.take<T>(s.factored ? 0 : s.n * s.length);
    right = arena.take<T>(s.factored ? 0 : whole * s.length);
    sums = arena.take<T>(s.factored ? 0 : s.n * s.columns);
  }
};

template <class T>
struct GramScratch {
  T *patches, *gradients, *patch_products, *products;  // factored: rows of x, and the tiles of two products
  T* rows;                                             // as many of y as a vector has numbers

  GramScratch(const GramShape<T>& s, Arena& arena) {
    if (!s.factored) {  // the tasks' of class gradients
      Arena x = arena, y = arena;
      OuterScratch<T>(s.x, x);
      OuterScratch<T>(s.y, y);
      arena.used = larger(x.used, y.used);
    }
    const int64_t rows_of_block = s.factored ? s.block_rows() : 0;
    patches = arena.take<T>(rows_of_block * s.patch_pitch);
    gradients = arena.take<T>(rows_of_block * s.output_pitch);
    patch_products = arena.take<T>(rows_of_block * panel<T>);
    products = arena.take<T>(rows_of_block * panel<T>);
    rows = arena.take<T>(width<T> * (s.factored ? larger(s.patch_pitch, s.output_pitch) : s.length));
  }
};

template <class T>
static int64_t gram_scratch_bytes(const GramShape<T>& s) {
  Arena arena{nullptr};
  GramScratch<T>(s, arena);
  return arena.used;
}

template <class T>
static int64_t gram_memory_bytes(const GramShape<T>& s) {
  Arena arena{nullptr};
  GramMemory<T>(s, arena);
  return arena.used;
}

template <class T>
static int64_t gram_bytes(const ImageGramArguments& a, int threads) {
  const GramShape<T> s(a);
  return gram_memory_bytes(s) + threads * gram_scratch_bytes(s);
}

// to[k step + r] = rows[k + r pitch]: `width` rows side by side, `count` numbers of each.
template <class T>
static void lay_side_by_side(const T* rows, int64_t pitch, int64_t count, T* to, int64_t step) {
  vec<T> square[width<T>];
  int64_t k = 0;
  for (; k + width<T> <= count; k += width<T>) {
    for (int64_t r = 0; r < width<T>; ++r) square[r] = load(rows + r * pitch + k);
    transpose<T>(square);
    for (int64_t r = 0; r < width<T>; ++r) store(to + (k + r) * step, square[r]);
  }
  if (k == count) return;
  for (int64_t r = 0; r < width<T>; ++r) {
    T numbers[width<T>] = {};
    std::memcpy(numbers, rows + r * pitch + k, (count - k) * sizeof(T));
    square[r] = load(numbers);
  }
  transpose<T>(square);
  for (int64_t r = 0; k < count; ++k, ++r) store(to + k * step, square[r]);
}

// The patch that position t of an image sees, and its output gradients, of one group.
template <class T>
static void pack_patch(const LayerPair& pair, int64_t group, int64_t image, int64_t t, T* to) {
  const Convolution& c = pair.convolution;
  const Images& in = pair.activations;
  const int64_t channels = in.channels / c.groups, taps = c.kernel[0] * c.kernel[1];
  const int64_t y = t / pair.gradients.width * c.stride[0] - c.padding[0];
  const int64_t x = t % pair.gradients.width * c.stride[1] - c.padding[1];
  for (int64_t tap = 0; tap < taps; ++tap, to += channels) {
    const int64_t row = y + tap / c.kernel[1] * c.dilation[0], column = x + tap % c.kernel[1] * c.dilation[1];
    if (row < 0 || row >= in.height || column < 0 || column >= in.width) {
      std::memset(to, 0, channels * sizeof(T));
      continue;
    }
    const char* from = element(in, image, group * channels, row, column);
    if (in.strides[1] == 1)
      copy_numbers(to, from, in.dtype, channels);
    else
      widen(to, from, in.dtype, in.strides[1], channels);
  }
}

template <class T>
static void pack_gradient(const LayerPair& pair, int64_t group, int64_t image, int64_t t, T* to) {
  const Images& out = pair.gradients;
  const int64_t outputs = out.channels / pair.convolution.groups;
  const char* from = element(out, image, group * outputs, t / out.width, t % out.width);
  if (out.strides[1] == 1)
    copy_numbers(to, from, out.dtype, outputs);
  else
    widen(to, from, out.dtype, out.strides[1], outputs);
}

template <class T>
struct GramRun {
  const ImageGramArguments& a;
  const LayerPair& other;  // y
  GramShape<T> s;
  SegmentOuterArguments x_arguments, y_arguments;
  char* scratch;
  int64_t scratch_bytes;
  OuterRun<T> x, y;
  GramMemory<T> memory;
  int64_t group = 0, tile = 0;

  GramRun(const ImageGramArguments& arguments, const Execution& e)
      : a(arguments),
        other(a.self ? a.x : a.y),
        s(a),
        x_arguments(outer_of(a.x)),
        y_arguments(outer_of(other)),
        scratch((char*)e.workspace + gram_memory_bytes(s)),
        scratch_bytes(gram_scratch_bytes(s)),
        x{x_arguments, s.x, scratch, scratch_bytes},
        y{y_arguments, s.y, scratch, scratch_bytes},
        memory(shared_memory(s, e)) {
    // Whether it is wanted: nothing is written there.
    x_arguments.bias.data = y_arguments.bias.data = a.bias ? e.workspace : nullptr;
  }

  static GramMemory<T> shared_memory(const GramShape<T>& s, const Execution& e) {
    Arena arena{(char*)e.workspace};
    return GramMemory<T>(s, arena);
  }
  GramScratch<T> scratch_of(int worker) const {
    Arena arena{scratch + worker * scratch_bytes};
    return GramScratch<T>(s, arena);
  }
  T* row(int64_t i) const { return (T*)a.gram.data + i * a.gram.stride; }

  // Of a symmetric K: what lies behind the diagonal in these rows and columns, to before it.
  void mirror(int64_t first, int64_t end, int64_t column, int64_t end_column) const {
    for (int64_t i = first; i < end; ++i)
      for (int64_t j = larger(i + 1, column); j < end_column; ++j) row(j)[i] = row(i)[j];
  }
};

// A vector's width of columns: positions of y, side by side.
template <class T>
static void pack_columns(void* context, int64_t task, int worker) {
  const GramRun<T>& run = *(const GramRun<T>*)context;
  const GramShape<T>& s = run.s;
  const GramScratch<T> scratch = run.scratch_of(worker);
  const int64_t first = task * width<T>, at = first / panel<T>, lane = first % panel<T>;
  const int64_t count = smaller(width<T>, s.m * s.y_positions - first);
  const auto pack = [&](int64_t numbers, int64_t pitch, auto one, T* to) {
    for (int64_t r = 0; r < width<T>; ++r)
      if (r < count)
        one(run.other, run.group, (first + r) / s.y_positions, (first + r) % s.y_positions,
            scratch.rows + r * pitch);
      else
        std::memset(scratch.rows + r * pitch, 0, numbers * sizeof(T));
    lay_side_by_side(scratch.rows, pitch, numbers, to + at * numbers * panel<T> + lane, panel<T>);
  };
  pack(s.patch, s.patch_pitch, pack_patch<T>, run.memory.patches);
  pack(s.outputs, s.output_pitch, pack_gradient<T>, run.memory.gradients);
}

// rows x one panel of columns, over all of a depth.
template <class T>
static void whole_product(int64_t rows, int vectors, int64_t depth, const T* left, int64_t pitch,
                          const T* right, T* out) {
  if (depth == 0) std::memset(out, 0, rows * panel<T> * sizeof(T));
  for (int64_t k = 0; k < depth; k += kDepth)
    product<T>(rows, vectors, smaller(kDepth, depth - k), left + k, pitch, 1, right + k * panel<T>, panel<T>,
               out, panel<T>, k > 0);
}

template <class T>
static void factored_block(void* context, int64_t task, int worker) {
  const GramRun<T>& run = *(const GramRun<T>*)context;
  const GramShape<T>& s = run.s;
  const GramScratch<T> scratch = run.scratch_of(worker);
  const int64_t first = task / s.column_parts * s.row_images, end = smaller(first + s.row_images, s.n);
  const int64_t part = task % s.column_parts;
  const int64_t first_panel = part * s.panels / s.column_parts,
                end_panel = (part + 1) * s.panels / s.column_parts;
  const int64_t end_image = part + 1 == s.column_parts ? s.m : end_panel * panel<T>;
  const int64_t begin = larger(run.a.self ? first : 0, first_panel * panel<T> / larger(s.y_positions, 1));
  if (begin >= end_image) return;
  const int64_t rows = (end - first) * s.x_positions;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t image = first + r / s.x_positions, t = r % s.x_positions;
    pack_patch<T>(run.a.x, run.group, image, t, scratch.patches + r * s.patch_pitch);
    pack_gradient<T>(run.a.x, run.group, image, t, scratch.gradients + r * s.output_pitch);
  }
  // What lies before the diagonal is another's, who mirrors it there.
  const auto begin_of = [&](int64_t image) { return run.a.self ? larger(image, begin) : begin; };
  if (run.group == 0)
    for (int64_t i = first; i < end; ++i)
      for (int64_t j = begin_of(i); j < end_image; ++j) run.row(i)[j] = T(0);
  const T one = run.a.bias ? T(1) : T(0);
  for (int64_t at = begin * s.y_positions / panel<T>; at < end_panel; ++at) {
    const int64_t column = at * panel<T>, count = smaller(panel<T>, s.m * s.y_positions - column);
    const int vectors = vectors_for<T>(count);
    whole_product<T>(rows, vectors, s.patch, scratch.patches, s.patch_pitch,
                     run.memory.patches + column * s.patch, scratch.patch_products);
    whole_product<T>(rows, vectors, s.outputs, scratch.gradients, s.output_pitch,
                     run.memory.gradients + column * s.outputs, scratch.products);
    for (int64_t r = 0; r < rows; ++r) {
      const T *p = scratch.patch_products + r * panel<T>, *q = scratch.products + r * panel<T>;
      const int64_t image = first + r / s.x_positions;
      T* out = run.row(image);
      const int64_t from = larger(begin_of(image) * s.y_positions - column, 0);
      if (s.y_positions == 1)
        for (int64_t k = from; k < count; ++k) out[column + k] += (p[k] + one) * q[k];
      else
        for (int64_t k = from; k < count; ++k) out[(column + k) / s.y_positions] += (p[k] + one) * q[k];
    }
  }
  if (run.a.self && run.group + 1 == s.groups) run.mirror(first, end, begin, end_image);
}

// The numbers of a tile of one image's gradient, those of the bias behind the others.
template <class T>
static int64_t instantiate(const OuterRun<T>& outer, const GramRun<T>& run, int64_t image, int worker,
                           T* to) {
  OuterTask<T> task(outer, run.group * run.s.tiles + run.tile, worker);
  int64_t count = task.columns() * task.row();
  if (task.add_up(image, image + 1))
    std::memcpy(to, task.sums(), count * sizeof(T));
  else
    std::memset(to, 0, count * sizeof(T));
  const double* bias = task.bias();
  for (int64_t o = 0; bias && o < task.row(); ++o) to[count++] = (T)bias[o];
  return count;
}

// Tiles of as many images as a vector has numbers; those of y come first.
template <class T>
static void instantiate_images(void* context, int64_t task, int worker) {
  const GramRun<T>& run = *(const GramRun<T>*)context;
  const GramShape<T>& s = run.s;
  const int64_t of_y = s.columns / width<T>;
  const bool is_y = task < of_y;
  const int64_t first = (is_y ? task : task - of_y) * width<T>;
  if (!is_y) {
    for (int64_t i = first; i < smaller(first + width<T>, s.n); ++i)
      instantiate(run.x, run, i, worker, run.memory.left + i * s.length);
    return;
  }
  T* rows = run.scratch_of(worker).rows;
  int64_t count = 0;
  for (int64_t r = 0; r < width<T>; ++r) {
    if (first + r < s.m)
      count = instantiate(run.y, run, first + r, worker, rows + r * s.length);
    else
      std::memset(rows + r * s.length, 0, count * sizeof(T));
    if (run.a.self && first + r < s.m)
      std::memcpy(run.memory.left + (first + r) * s.length, rows + r * s.length, count * sizeof(T));
  }
  lay_side_by_side(rows, s.length, count,
                   run.memory.right + first / panel<T> * panel<T> * s.length + first % panel<T>, panel<T>);
}

// A block of K's rows and a panel of its columns: K += G H^T.
template <class T>
static void add_tile(void* context, int64_t task, int worker) {
  const GramRun<T>& run = *(const GramRun<T>*)context;
  const GramShape<T>& s = run.s;
  const int64_t first = task / s.panels * s.row_images, column = task % s.panels * panel<T>;
  const int64_t rows = smaller(s.row_images, s.n - first);
  if (run.a.self && column + panel<T> <= first) return;
  const int vectors = vectors_for<T>(s.columns - column);
  const bool add = run.group > 0 || run.tile > 0;
  const int64_t count = OuterTask<T>(run.x, run.group * s.tiles + run.tile, worker).numbers();
  for (int64_t k = 0; k < count; k += kDepth)
    product<T>(rows, vectors, smaller(kDepth, count - k), run.memory.left + first * s.length + k, s.length, 1,
               run.memory.right + column * s.length + k * panel<T>, panel<T>,
               run.memory.sums + first * s.columns + column, s.columns, add || k > 0);
}

template <class T>
static void write_rows(void* context, int64_t task, int) {
  const GramRun<T>& run = *(const GramRun<T>*)context;
  const GramShape<T>& s = run.s;
  const int64_t first = task * s.row_images, end = smaller(first + s.row_images, s.n);
  for (int64_t i = first; i < end; ++i) {
    const int64_t begin = run.a.self ? i : 0;
    std::memcpy(run.row(i) + begin, run.memory.sums + i * s.columns + begin, (s.m - begin) * sizeof(T));
  }
  if (run.a.self) run.mirror(first, end, 0, s.m);
}

template <class T>
static void run_image_gram(const ImageGramArguments& a, const Execution& e) {
  GramRun<T> run(a, e);
  const GramShape<T>& s = run.s;
  if (s.n == 0 || s.m == 0) return;
  const double operations = (double)s.n * (double)s.m * (double)(s.outputs + s.patch) +
                            (double)(s.n * s.x_positions + s.m * s.y_positions) * (double)s.outputs * 8;
  const int threads = operations < kParallelOperations ? 1 : e.threads;
  for (run.group = 0; run.group < s.groups; ++run.group) {
    if (s.factored) {
      cpu::parallel_for(s.columns / width<T>, threads, &run, pack_columns<T>);
      cpu::parallel_for(s.row_blocks * s.column_parts, threads, &run, factored_block<T>);
      continue;
    }
    const int64_t images = s.columns / width<T> + (a.self ? 0 : ceil_div(s.n, width<T>));
    for (run.tile = 0; run.tile < s.tiles; ++run.tile) {
      cpu::parallel_for(images, threads, &run, instantiate_images<T>);
      cpu::parallel_for(s.row_blocks * s.panels, threads, &run, add_tile<T>);
    }
  }
  if (!s.factored) cpu::parallel_for(s.row_blocks, threads, &run, write_rows<T>);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
