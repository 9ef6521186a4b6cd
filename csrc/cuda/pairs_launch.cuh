// Launches of the kernels of one arithmetic; each pairs_*.cu instantiates them once.
#pragma once
#include "fused.cuh"
#include "hvp.cuh"
#include "launch.h"
#include "product.cuh"
#include "transport_tile.cuh"

namespace decoct::cuda {

inline Launch blocks_of(const Round& round, int shared_bytes, void* stream) {
  return {round.count, kThreads, shared_bytes, stream};
}

template <class A, Shape S, bool Gaussian>
void launch_score(const RoundLaunch<typename A::T>& l, bool scratch) {
  launch(score_kernel<A, S, Gaussian>, blocks_of(l.round, score_shared<A, S>(), l.stream), l.problem,
         l.round.first, scratch);
}

// use(shape) with the launch's shape as a constant, of those that this arithmetic and op have.
template <class A, bool Tangents, class Use>
void with_shape(Shape shape, Use use) {
  if constexpr (sizeof(typename A::T) == 8 || Tangents) {
    use(std::integral_constant<Shape, Shape::medium>{});
  } else if (shape == Shape::square) {
    use(std::integral_constant<Shape, Shape::square>{});
  } else {
    use(std::integral_constant<Shape, Shape::narrow>{});
  }
}

template <class A>
void PairKernels<A>::score(const RoundLaunch<T>& l, bool scratch) {
  with_shape<A, false>(l.round.shape, [&](auto shape) {
    l.problem.kernel.profile == Profile::gaussian ? launch_score<A, shape, true>(l, scratch)
                                                  : launch_score<A, shape, false>(l, scratch);
  });
}

template <class A>
void PairKernels<A>::hvp(const RoundLaunch<T>& l) {
  constexpr Shape shape = Shape::medium;
  launch(hvp_kernel<A, shape>, blocks_of(l.round, hvp_shared<A, shape>(), l.stream), l.problem,
         l.round.first);
}

template <class A>
void PairKernels<A>::product(const RoundLaunch<T>& l, int result_columns) {
  const auto run = [&](auto shape) {
    const int tiles = result_columns ? (result_columns + tile_columns(shape) - 1) / tile_columns(shape) : 1;
    const Launch blocks{(int64_t)l.round.count * tiles, kThreads, product_shared<A, shape>(), l.stream};
    launch(product_kernel<A, shape>, blocks, l.problem, l.round.first, l.round.scores, tiles);
  };
  l.round.shape == Shape::medium ? with_shape<A, true>(l.round.shape, run)
                                 : with_shape<A, false>(l.round.shape, run);
}

template <class A, int Width>
void launch_fused(const RoundLaunch<float>& l) {
  const Launch shape = blocks_of(l.round, fused_shared<A, Width>(), l.stream);
  l.problem.kernel.profile == Profile::gaussian
      ? launch(fused_kernel<A, Width, true>, shape, l.problem, l.round.first)
      : launch(fused_kernel<A, Width, false>, shape, l.problem, l.round.first);
}

template <class A>
void PairKernels<A>::fused(const RoundLaunch<T>& l) {
  if constexpr (sizeof(T) == 4) switch (fused_width(l.problem.dim)) {
      case 32:
        return launch_fused<A, 32>(l);
      case 64:
        return launch_fused<A, 64>(l);
      case 128:
        return launch_fused<A, 128>(l);
      default:
        return launch_fused<A, 256>(l);
    }
}

template <class A>
void PairKernels<A>::transport(const TransportLaunch<T>& l) {
  launch_transport<A>(l);
}

}  // namespace decoct::cuda
