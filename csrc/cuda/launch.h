// What the engine launches: one function for each kind of kernel, compiled in files of their own.
#pragma once
#include "finish.cuh"

namespace decoct::cuda {

template <class T>
struct TransportLaunch;

// A round of a schedule on the problem's tasks.
template <class T>
struct RoundLaunch {
  const Problem<T>& problem;
  const Round& round;
  void* stream;
};

// Kernels of one arithmetic (arithmetic.cuh).
template <class A>
struct PairKernels {
  using T = typename A::T;
  static void score(const RoundLaunch<T>& launch, bool scratch);
  static void hvp(const RoundLaunch<T>& launch);
  static void product(const RoundLaunch<T>& launch, int result_columns);
  static void fused(const RoundLaunch<T>& launch);
  static void transport(const TransportLaunch<T>& launch);
};

template <class T>
struct SmallKernels {
  static void launch(const RoundLaunch<T>& launch);
};

template <class T>
struct RowKernels {
  static void anchor(const Problem<T>& problem, int64_t segments, void* stream);
  static void pack(const Problem<T>& problem, int64_t chunks, void* stream);
  static void pack_tangents(const Problem<T>& problem, int64_t chunks, void* stream);
  static void pack_vectors(const Problem<T>& problem, const Source& v, int64_t rows, int32_t columns,
                           void* stream);
  static void sums(const Problem<T>& problem, int64_t chunks, T* out, int64_t out_stride, void* stream);
  static void finish(const Problem<T>& problem, const Results<T>& results, int64_t segments, void* stream);
};

}  // namespace decoct::cuda
