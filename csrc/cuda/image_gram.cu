// Launches of the inner products of per-sample gradients.
#include "image_gram.cuh"

#include "layer_problem.h"

namespace decoct {
namespace cuda {
namespace {

constexpr int64_t kGramBytes = int64_t{64} << 20;  // of tiles of gradients
constexpr int64_t kSlabBytes = int64_t{16} << 20;  // of parts of sums
constexpr int64_t kGramBlocks = 1024, kMostSplits = 64;

int64_t positions(const LayerPair& pair) {
  return pair.gradients.height * pair.gradients.width;
}

struct GramCuts {
  int64_t n, m;
  bool single;
  int64_t gram_tiles;                // of K
  int64_t tiles, together, numbers;  // of a gradient; at a time; numbers of one
  int64_t splits;

  explicit GramCuts(const ImageGramArguments& a) {
    const LayerPair& y = a.self ? a.x : a.y;
    const bool wide = a.x.type == DType::float64;
    const Shape shape = wide ? outer_shape<double> : outer_shape<float>;
    const OuterCuts cuts(a.x.activations, a.x.gradients, a.x.convolution, a.x.type);
    n = a.x.activations.count;
    m = y.activations.count;
    single = positions(a.x) == 1 && positions(y) == 1;
    gram_tiles = ceil_div(n, tile_rows(shape)) * ceil_div(m, tile_columns(shape));
    tiles = a.x.convolution.groups * cuts.output_tiles * cuts.patch_tiles;
    numbers = wide ? kTileNumbers<double> : kTileNumbers<float>;
    const int64_t bytes = (a.self ? n : n + m) * numbers * (wide ? 8 : 4);
    together = std::max<int64_t>(std::min(tiles, kGramBytes / std::max<int64_t>(bytes, 1)), 1);
    const int64_t room = kSlabBytes / std::max<int64_t>(n * m * (wide ? 8 : 4), 1);
    splits = std::max<int64_t>(
        std::min({kMostSplits, room, ceil_div(kGramBlocks, std::max<int64_t>(gram_tiles, 1))}), 1);
  }

  int64_t row_elements(bool self) const { return (self ? n : n + m) * together * numbers; }
  int64_t elements(bool self) const { return single ? 0 : row_elements(self) + splits * n * m; }
};

template <class T>
GramProblem<T> gram_problem(const ImageGramArguments& a) {
  GramProblem<T> p{};
  const LayerPair& y = a.self ? a.x : a.y;
  p.x = layer_problem<T>(a.x.activations, a.x.gradients, a.x.convolution, a.x.type);
  p.y = layer_problem<T>(y.activations, y.gradients, y.convolution, y.type);
  p.gram = (T*)a.gram.data;
  p.stride = a.gram.stride;
  p.n = (int32_t)a.x.activations.count;
  p.m = (int32_t)y.activations.count;
  p.self = a.self;
  p.bias = a.bias;
  return p;
}

template <class A>
void launch_single_gram(const GramProblem<typename A::T>& p, int64_t tiles, void* stream) {
  launch(single_gram_kernel<A>, {tiles, kThreads, single_gram_shared<A>(), stream}, p);
}

template <class A>
void launch_tiles(const OuterProblem<typename A::T>& p, int64_t images, bool bias, int64_t first,
                  int64_t tiles, typename A::Point* out, void* stream) {
  launch(instantiate_kernel<A>, {images * tiles, kThreads, outer_shared<A>(), stream}, p, bias, (int)first,
         (int)tiles, out);
}

template <class A>
void launch_products(const GramProblem<typename A::T>& p, const GramRows<typename A::Point>& rows,
                     int64_t tiles, bool add, typename A::T* slabs, void* stream) {
  launch(tile_gram_kernel<A>, {tiles * rows.splits, kThreads, tile_gram_shared<A>(), stream}, p, rows, add,
         slabs);
}

template <class T>
void launch_slabs(const GramProblem<T>& p, int64_t splits, const T* slabs, void* stream) {
  launch(add_slabs_kernel<T>, {ceil_div((int64_t)p.n * p.m, kThreads), kThreads, 0, stream}, p, (int)splits,
         slabs);
}

template <class A>
void run_gram_as(const ImageGramArguments& a, const Execution& e) {
  using T = typename A::T;
  const GramCuts cuts(a);
  const GramProblem<T> p = gram_problem<T>(a);
  if (cuts.n == 0 || cuts.m == 0) return;
  if (cuts.single) return launch_single_gram<A>(p, cuts.gram_tiles, e.stream);
  auto* left = (typename A::Point*)e.workspace;
  T* slabs = (T*)e.workspace + cuts.row_elements(a.self);
  for (int64_t first = 0; first < cuts.tiles; first += cuts.together) {
    const int64_t tiles = std::min(cuts.together, cuts.tiles - first), length = tiles * cuts.numbers;
    auto* right = a.self ? left : left + cuts.n * length;
    launch_tiles<A>(p.x, cuts.n, a.bias, first, tiles, left, e.stream);
    if (!a.self) launch_tiles<A>(p.y, cuts.m, a.bias, first, tiles, right, e.stream);
    launch_products<A>(p, {left, right, (int32_t)length, (int32_t)cuts.splits}, cuts.gram_tiles, first > 0,
                       slabs, e.stream);
  }
  launch_slabs(p, cuts.splits, slabs, e.stream);
}

}  // namespace
}  // namespace cuda

Plan plan_image_gram(const ImageGramArguments& a, int threads) {
  check_image_gram(a, threads);
  return cuda::plan_of(cuda::GramCuts(a).elements(a.self) * (a.x.type == DType::float64 ? 8 : 4));
}

void image_gram(const ImageGramArguments& a, const Execution& e) {
  if (a.x.type == DType::float64)
    cuda::run_gram_as<cuda::Scalar<double>>(a, e);
  else if (e.precision == Precision::highest)
    cuda::run_gram_as<cuda::Tf32x3>(a, e);
  else if (e.precision == Precision::high)
    cuda::run_gram_as<cuda::Tf32>(a, e);
  else
    cuda::run_gram_as<cuda::Bfloat16>(a, e);
}

}  // namespace decoct
