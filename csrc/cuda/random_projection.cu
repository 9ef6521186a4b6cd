// Random projections: one launch, a block for each tile of the result.
#include "random_projection.cuh"

#include "layer_problem.h"

namespace decoct {
namespace cuda {
namespace {

template <class A>
void run_projection(const RandomProjectionArguments& a, const Execution& e) {
  using T = typename A::T;
  using Tile = typename PairProduct<A>::Tile;
  ProjectionView<T> v{};
  v.x = {a.x.data, a.x.stride, a.x.dtype, 0};
  v.out = (T*)a.out.data;
  v.out_stride = a.out.stride;
  v.seed = a.seed;
  v.stream = a.stream;
  v.factor = (T)a.factor;
  v.rows = (int32_t)a.x.rows;
  v.depth = (int32_t)a.x.columns;
  v.columns = (int32_t)a.out.columns;
  v.transposed = a.transposed;
  const int64_t blocks = ceil_div(v.rows, Tile::kRows) * ceil_div(v.columns, Tile::kColumns);
  launch(random_projection_kernel<A>, {blocks, kThreads, projection_shared<A>(), e.stream}, v);
}

}  // namespace
}  // namespace cuda

Plan plan_random_projection(const RandomProjectionArguments& a, int threads) {
  check_random_projection(a, threads);
  return cuda::plan_of(0);
}

void random_projection(const RandomProjectionArguments& a, const Execution& e) {
  if (a.type() == DType::float64) return cuda::run_projection<cuda::Scalar<double>>(a, e);
  switch (e.precision) {
    case Precision::highest:
      return cuda::run_projection<cuda::Tf32x3>(a, e);
    case Precision::high:
      return cuda::run_projection<cuda::Tf32>(a, e);
    default:
      return cuda::run_projection<cuda::Bfloat16>(a, e);
  }
}

}  // namespace decoct
