// Small functions that the CPU, CUDA and its emulation share.
#pragma once

#if defined(__CUDACC__)
#define DECOCT_BOTH __host__ __device__ __forceinline__
#else
#define DECOCT_BOTH static inline __attribute__((always_inline))
#endif
