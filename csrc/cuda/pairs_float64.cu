// Kernels over pairs in float64.
#include "pairs_launch.cuh"

template struct decoct::cuda::PairKernels<decoct::cuda::Scalar<double>>;
