// Kernels over pairs in float32 by three TF32 products.
#include "pairs_launch.cuh"

template struct decoct::cuda::PairKernels<decoct::cuda::Tf32x3>;
