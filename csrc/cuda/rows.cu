// Kernels over rows: preparation and the end of a call.
#include "rows.cuh"

#include "launch.h"

namespace decoct::cuda {

template <class T>
void RowKernels<T>::anchor(const Problem<T>& problem, int64_t segments, void* stream) {
  launch(anchor_kernel<T>, {segments, kThreads, kWarps * 8, stream}, problem);
}
template <class T>
void RowKernels<T>::pack(const Problem<T>& problem, int64_t chunks, void* stream) {
  launch(pack_kernel<T>, {chunks, kThreads, kWarps * 2 * kGroupRows * 8 + 16, stream}, problem);
}
template <class T>
void RowKernels<T>::pack_tangents(const Problem<T>& problem, int64_t chunks, void* stream) {
  launch(pack_tangents_kernel<T>, {chunks, kThreads, 0, stream}, problem);
}
template <class T>
void RowKernels<T>::pack_vectors(const Problem<T>& problem, const Source& v, int64_t rows, int32_t columns,
                                 void* stream) {
  const int64_t blocks = (rows + kWarps - 1) / kWarps;
  launch(pack_vectors_kernel<T>, {blocks < kPackBlocks ? blocks : kPackBlocks, kThreads, 0, stream}, problem,
         v, rows, columns);
}
template <class T>
void RowKernels<T>::sums(const Problem<T>& problem, int64_t chunks, T* out, int64_t out_stride,
                         void* stream) {
  launch(segment_sums_kernel<T>, {chunks, kThreads, 16, stream}, problem, out, out_stride);
}
template <class T>
void RowKernels<T>::finish(const Problem<T>& problem, const Results<T>& results, int64_t segments,
                           void* stream) {
  launch(finish_kernel<T>, {results.chunks + segments, kThreads, kWarps * 8, stream}, problem, results);
}

template struct RowKernels<float>;
template struct RowKernels<double>;

}  // namespace decoct::cuda
