// Launches of the norms of per-sample gradients.
#include "image_squares.cuh"

#include "layer_problem.h"

namespace decoct {
namespace cuda {
namespace {

int64_t squares_tiles(const OuterCuts& cuts, const Convolution& c) {
  return c.groups * cuts.output_tiles * cuts.patch_tiles;
}

bool is_single(const LayerPair& pair) {
  return pair.gradients.height * pair.gradients.width == 1;
}

template <class A>
void launch_squares(const OuterProblem<typename A::T>& p, int64_t images, bool bias, TileSquares* squares,
                    void* stream) {
  const int64_t tiles = (int64_t)p.groups * p.output_tiles * p.patch_tiles;
  launch(squares_kernel<A>, {images * tiles, kThreads, squares_shared<A>(), stream}, p, bias, squares);
}

template <class T>
void launch_sums(const OuterProblem<T>& p, int64_t images, const TileSquares* squares, const Matrix& weight,
                 const Matrix& bias, void* stream) {
  const int64_t tiles = (int64_t)p.groups * p.output_tiles * p.patch_tiles;
  launch(add_squares_kernel<T>, {ceil_div(images, kThreads), kThreads, 0, stream}, squares, (int)tiles,
         images, (T*)weight.data, weight.stride, (T*)bias.data, bias.stride);
}

template <class T>
void launch_single(const OuterProblem<T>& p, int64_t images, const Matrix& weight, const Matrix& bias,
                   void* stream) {
  launch(single_squares_kernel<T>, {images, kThreads, kWarps * (int)sizeof(double), stream}, p,
         (T*)weight.data, weight.stride, (T*)bias.data, bias.stride);
}

template <class T>
void run_squares(const ImageSquaresArguments& a, const Execution& e) {
  const LayerPair& pair = a.pair;
  const int64_t images = pair.activations.count;
  const OuterProblem<T> p = layer_problem<T>(pair.activations, pair.gradients, pair.convolution, pair.type);
  if (is_single(pair)) return launch_single(p, images, a.weight, a.bias, e.stream);
  auto* squares = (TileSquares*)e.workspace;
  const bool bias = a.bias.data;
  if constexpr (sizeof(T) == 8) {
    launch_squares<Scalar<double>>(p, images, bias, squares, e.stream);
  } else if (e.precision == Precision::highest) {
    launch_squares<Tf32x3>(p, images, bias, squares, e.stream);
  } else if (e.precision == Precision::high) {
    launch_squares<Tf32>(p, images, bias, squares, e.stream);
  } else {
    launch_squares<Bfloat16>(p, images, bias, squares, e.stream);
  }
  launch_sums(p, images, squares, a.weight, a.bias, e.stream);
}

}  // namespace
}  // namespace cuda

Plan plan_image_squares(const LayerPair& pair, int threads) {
  check_layer_pair(pair, threads);
  const cuda::OuterCuts cuts(pair.activations, pair.gradients, pair.convolution, pair.type);
  const int64_t tiles = cuda::squares_tiles(cuts, pair.convolution);
  return cuda::plan_of(
      cuda::is_single(pair) ? 0 : pair.activations.count * tiles * (int64_t)sizeof(cuda::TileSquares));
}

void image_squares(const ImageSquaresArguments& a, const Execution& e) {
  a.pair.type == DType::float64 ? cuda::run_squares<double>(a, e) : cuda::run_squares<float>(a, e);
}

}  // namespace decoct
