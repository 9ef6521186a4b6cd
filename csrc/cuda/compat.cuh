// Every CUDA intrinsic and all inline PTX, behind names that keep their meaning when the kernels are compiled
// for the CPU (tests/cuda_on_cpu defines the same names on fibers, with races, bounds and barriers checked).
//
// Rules for kernels, so that both sides agree: shared memory comes from Shared::take in the same order in
// every thread; warp collectives are called by all 32 lanes; __syncwarp stands around every exchange through
// shared memory inside a warp; no thread returns before a barrier that others reach; blocks wait for no
// block.
#pragma once

#if defined(DECOCT_CUDA_ON_CPU)
#include "cuda_on_cpu.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

// Blocks have 128 threads.
#define DECOCT_KERNEL __global__ __launch_bounds__(128, 2) void
#define DECOCT_DEVICE __device__ __forceinline__

namespace decoct::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

DECOCT_DEVICE int thread_index() {
  return (int)threadIdx.x;
}
DECOCT_DEVICE int block_index() {
  return (int)blockIdx.x;
}
DECOCT_DEVICE int lane_index() {
  return (int)threadIdx.x % 32;
}
DECOCT_DEVICE int warp_index() {
  return (int)threadIdx.x / 32;
}

// Hands out the block's dynamic shared memory, 16-byte aligned.
class Shared {
 public:
  template <class T>
  DECOCT_DEVICE T* take(int count) {
    extern __shared__ __align__(16) unsigned char memory[];
    T* array = (T*)(memory + used_);
    used_ += (count * (int)sizeof(T) + 15) / 16 * 16;
    return array;
  }

 private:
  int used_ = 0;
};

DECOCT_DEVICE void sync_block() {
  __syncthreads();
}
DECOCT_DEVICE bool sync_block_any(bool mine) {
  return __syncthreads_or(mine) != 0;
}
DECOCT_DEVICE void sync_warp() {
  __syncwarp();
}
template <class T>
DECOCT_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kAllLanes, value, mask);
}

DECOCT_DEVICE int lowest_bit(uint32_t bits) {
  return __ffs((int)bits) - 1;
}

// Global memory written before the fence is seen by whoever sees what is written after it.
DECOCT_DEVICE void fence() {
  __threadfence();
}
DECOCT_DEVICE int atomic_add(int* counter, int value) {
  return atomicAdd(counter, value);
}
DECOCT_DEVICE void atomic_or(uint32_t* word, uint32_t bits) {
  atomicOr(word, bits);
}

// Starts to copy `bytes` (0 to 16) to shared memory and zeros the rest of the 16; both ends are 16-byte
// aligned. Nothing is there before wait_copies and a barrier.
DECOCT_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  const unsigned target = (unsigned)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(target), "l"(global), "r"(bytes)
               : "memory");
}
DECOCT_DEVICE void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
// All but the latest `Pending` groups that this thread committed are there.
template <int Pending>
DECOCT_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

// a b + c, rounded once.
DECOCT_DEVICE float multiply_add(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
DECOCT_DEVICE double multiply_add(double a, double b, double c) {
  return __fma_rn(a, b, c);
}
// The nearest number with 10 bits of mantissa, as a float's bits.
DECOCT_DEVICE uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return bits;
}
DECOCT_DEVICE float as_float(uint32_t bits) {
  return __uint_as_float(bits);
}
DECOCT_DEVICE uint32_t as_bits(float value) {
  return __float_as_uint(value);
}
// Two floats rounded to bfloat16, the first in the low half.
DECOCT_DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
DECOCT_DEVICE float half_to_float(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
// Rounded to the nearest, ties to even.
DECOCT_DEVICE uint16_t float_to_half(float value) {
  return __half_as_ushort(__float2half_rn(value));
}

// Lane l gives the address of 16 bytes, row l % 8 of matrix l / 8, and receives word l % 4 of row l / 4 of
// each of the four 8 x 4 matrices.
DECOCT_DEVICE void load_matrices(uint32_t (&words)[4], const void* row) {
  const unsigned source = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(source)
               : "memory");
}

// The same of numbers of 16 bits, but of the matrices' transposes: row l / 4 is a column of what lies there.
DECOCT_DEVICE void load_transposed(uint32_t (&words)[4], const void* row) {
  const unsigned source = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(source)
               : "memory");
}

// sums[m][n] += a[m] b[n] for M x N tiles of 16 x 8, products of 8 TF32 or 16 bfloat16 columns. With
// g = lane / 4 and t = lane % 4 a lane holds
//   sums  rows g, g, g + 8, g + 8 of columns 2t, 2t + 1, 2t, 2t + 1
//   TF32  a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)        b: (t, g), (t + 4, g)
//   BF16  a: pairs from (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)   b: (2t, g), (2t + 8, g)
template <int M, int N>
DECOCT_DEVICE void multiply_tf32(float (&sums)[M][N][4], const uint32_t (&a)[M][4],
                                 const uint32_t (&b)[N][2]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
          : "+f"(sums[m][n][0]), "+f"(sums[m][n][1]), "+f"(sums[m][n][2]), "+f"(sums[m][n][3])
          : "r"(a[m][0]), "r"(a[m][1]), "r"(a[m][2]), "r"(a[m][3]), "r"(b[n][0]), "r"(b[n][1]));
}
template <int M, int N>
DECOCT_DEVICE void multiply_bfloat16(float (&sums)[M][N][4], const uint32_t (&a)[M][4],
                                     const uint32_t (&b)[N][2]) {
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
          : "+f"(sums[m][n][0]), "+f"(sums[m][n][1]), "+f"(sums[m][n][2]), "+f"(sums[m][n][3])
          : "r"(a[m][0]), "r"(a[m][1]), "r"(a[m][2]), "r"(a[m][3]), "r"(b[n][0]), "r"(b[n][1]));
}

// 2^value to 2 units in the last place; results below 2^-126 are 0.
DECOCT_DEVICE float exp2_approximate(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(value));
  return result;
}

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice)
    throw std::runtime_error(std::string("decoct: no CUDA driver or device on this machine (") +
                             cudaGetErrorString(status) + "); install NVIDIA's driver, or pass x.cpu()");
  throw std::runtime_error(std::string("decoct: CUDA failed in ") + what + ": " + cudaGetErrorString(status));
}

struct Launch {
  int64_t blocks;
  int threads, shared_bytes;
  void* stream;
};

constexpr int kSharedWithoutAsking = 48 << 10;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& l, const Arguments&... arguments) {
  if (l.blocks == 0) return;
  if (l.shared_bytes > kSharedWithoutAsking)
    check(cudaFuncSetAttribute((const void*)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               l.shared_bytes),
          "cudaFuncSetAttribute");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3((unsigned)l.blocks);
  config.blockDim = dim3((unsigned)l.threads);
  config.dynamicSmemBytes = (size_t)l.shared_bytes;
  config.stream = (cudaStream_t)l.stream;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "a kernel launch");
}

inline void fill_zero(void* memory, int64_t bytes, void* stream) {
  if (bytes > 0) check(cudaMemsetAsync(memory, 0, (size_t)bytes, (cudaStream_t)stream), "cudaMemsetAsync");
}

}  // namespace decoct::cuda
#endif
