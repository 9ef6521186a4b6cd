// Kernels over pairs of few columns.
#include "small.cuh"

#include "launch.h"

namespace decoct::cuda {
namespace {

template <class T, int Width>
void launch_width(const RoundLaunch<T>& l) {
  const Launch shape{l.round.count, kThreads, small_shared<T, Width>(), l.stream};
  l.problem.kernel.profile == Profile::gaussian && !l.problem.plan
      ? cuda::launch(small_kernel<T, true, Width>, shape, l.problem, l.round.first)
      : cuda::launch(small_kernel<T, false, Width>, shape, l.problem, l.round.first);
}

}  // namespace

template <class T>
void SmallKernels<T>::launch(const RoundLaunch<T>& l) {
  constexpr int widest = sizeof(T) == 8 ? kSmallDoubleDim - 1 : kSmallDim;
  l.problem.dim <= 4 ? launch_width<T, 4>(l) : launch_width<T, widest>(l);
}

template struct SmallKernels<float>;
template struct SmallKernels<double>;

}  // namespace decoct::cuda
