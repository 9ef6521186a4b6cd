// The interface on CUDA: every op is a few launches on the caller's stream. Nothing here allocates, waits or
// reads device memory, so that a call can be captured into a graph.
#include "call.cuh"

namespace decoct {
namespace cuda {
namespace {

template <class T>
void run_sums(const SumsArguments& a, const Execution& e) {
  Call<T> call(Op::sums, a.clouds, 1, e);
  call.problem.coefficients = a.coefficients;
  call.problem.from_data = a.bandwidth_from_data;
  call.prepare();
  call.run_rounds();
  call.finish(a.value, a.grad_x, a.grad_y, a.grad_a, a.grad_b, a.clouds.x.columns);
}

template <class T>
void run_hvp(const HvpArguments& a, const Execution& e) {
  Call<T> call(Op::hvp, a.clouds, 1, e);
  call.problem.coefficients = a.coefficients;
  call.problem.moving = a.tangent_x.data || a.tangent_y.data;
  call.problem.x.source_tangents = source_of(a.tangent_x);
  call.problem.y.source_tangents = source_of(a.tangent_y);
  call.problem.x.source_tangent_weights = (const T*)a.tangent_a.data;
  call.problem.y.source_tangent_weights = (const T*)a.tangent_b.data;
  call.prepare();
  RowKernels<T>::pack_tangents(call.problem, call.host.header->common.chunks, e.stream);
  call.run_rounds();
  call.finish(nullptr, a.out_x, a.out_y, a.out_a, a.out_b, a.clouds.x.columns);
}

template <class T>
void run_matvec(const MatvecArguments& a, const Execution& e) {
  Call<T> call(Op::matvec, a.clouds, a.v.columns, e);
  const bool single = a.v.columns == 1;
  if (single) {
    call.problem.y.source_weights = (const T*)a.v.data;
    call.problem.y.weight_stride = a.v.stride;
  } else {
    call.problem.vectors = call.template at<T>(call.layout.vectors);
  }
  call.prepare();
  if (!single)
    RowKernels<T>::pack_vectors(call.problem, source_of(a.v), a.v.rows, (int32_t)a.v.columns, e.stream);
  call.run_rounds();
  // One vector is the row sum of its weighted columns.
  const Matrix none{};
  call.finish(nullptr, single ? none : a.out, none, single ? a.out : none, none, a.v.columns);
}

bool is_double(const Matrix& rows) {
  return rows.dtype == DType::float64;
}

}  // namespace
}  // namespace cuda

void kernel_sums(const SumsArguments& a, const Execution& e) {
  cuda::is_double(a.clouds.x) ? cuda::run_sums<double>(a, e) : cuda::run_sums<float>(a, e);
}
void kernel_sums_hvp(const HvpArguments& a, const Execution& e) {
  cuda::is_double(a.clouds.x) ? cuda::run_hvp<double>(a, e) : cuda::run_hvp<float>(a, e);
}
void kernel_matvec(const MatvecArguments& a, const Execution& e) {
  cuda::is_double(a.clouds.x) ? cuda::run_matvec<double>(a, e) : cuda::run_matvec<float>(a, e);
}

namespace cuda {
namespace {

template <class T>
void run_segment_sums(const Clouds& clouds, const Matrix& out, const Execution& e) {
  const Call<T> call(Op::rows, clouds, 1, e);
  fill_zero(e.workspace, call.layout.zeroed, e.stream);
  for (int64_t c = 0; c < clouds.segments; ++c)  // no block writes these
    if (clouds.x_offsets[c] == clouds.x_offsets[c + 1])
      fill_zero((T*)out.data + c * out.stride, out.columns * (int64_t)sizeof(T), e.stream);
  RowKernels<T>::sums(call.problem, call.host.header->common.chunks, (T*)out.data, out.stride, e.stream);
}

template <class T>
void run_mean_bandwidth(const Clouds& clouds, const Execution& e) {
  Call<T> call(Op::rows, clouds, 1, e);
  call.problem.from_data = true;
  call.problem.precision = (int32_t)Precision::highest;
  call.prepare();
}

}  // namespace
}  // namespace cuda

void segment_sums(const Clouds& clouds, const Matrix& out, const Execution& e) {
  cuda::is_double(clouds.x) ? cuda::run_segment_sums<double>(clouds, out, e)
                            : cuda::run_segment_sums<float>(clouds, out, e);
}
void mean_bandwidth(const Clouds& clouds, const Execution& e) {
  cuda::is_double(clouds.x) ? cuda::run_mean_bandwidth<double>(clouds, e)
                            : cuda::run_mean_bandwidth<float>(clouds, e);
}

std::string isa_name() {
  return DECOCT_CUDA_NAME;
}

}  // namespace decoct
