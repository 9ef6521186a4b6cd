// Kernels over pairs in bfloat16 products.
#include "pairs_launch.cuh"

template struct decoct::cuda::PairKernels<decoct::cuda::Bfloat16>;
