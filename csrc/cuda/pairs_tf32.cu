// Kernels over pairs in TF32.
#include "pairs_launch.cuh"

template struct decoct::cuda::PairKernels<decoct::cuda::Tf32>;
