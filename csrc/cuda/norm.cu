// Normalisation on CUDA: one launch, and a small one for each sum over images.
#include "norm.cuh"

#include <algorithm>
#include <climits>

namespace decoct {
namespace cuda {
namespace {

constexpr int sums_of(NormOp op) {
  return op == NormOp::value ? 0 : op == NormOp::grad ? 2 : 3;
}

// A group is a row of x where channels are not last; the result's pixels are read one by one.
Source source_of(const Matrix& m, int64_t group, bool last) {
  const int64_t element = m.dtype == DType::float64 ? 8 : m.dtype == DType::float32 ? 4 : 2;
  const bool aligned = (uintptr_t)m.data % std::min<int64_t>(4 * element, 16) == 0 && group % 4 == 0;
  return {m.data, group, m.dtype, aligned && !last};
}

template <class T>
NormView<T> view_of(const NormProblem& problem, const Execution& e) {
  const NormShape& s = problem.shape;
  const int64_t each = s.channels / s.groups, group = each * s.pixels();
  if (group > INT32_MAX - 4 * kThreads || s.channels > INT32_MAX || s.images * s.groups > INT32_MAX)
    throw std::invalid_argument("group_norm: groups and their numbers must be fewer than 2^31");
  NormView<T> p{};
  p.x = source_of(problem.x, group, s.channels_last);
  p.weight = (const T*)problem.weight.data;
  p.bias = (const T*)problem.bias.data;
  p.mean = (T*)problem.mean.data;
  p.factor = (T*)problem.factor.data;
  p.sums = (double*)e.workspace;
  p.images = s.images;
  p.channels = (int32_t)s.channels;
  p.groups = (int32_t)s.groups;
  p.each = (int32_t)each;
  p.height = (int32_t)s.height;
  p.width = (int32_t)s.width;
  p.pixels = (int32_t)s.pixels();
  p.pool_height = (int32_t)s.pool_height;
  p.pool_width = (int32_t)s.pool_width;
  p.pooled_width = (int32_t)s.pooled_width();
  p.pooled = (int32_t)s.pooled_pixels();
  p.relu = s.relu;
  p.last = s.channels_last;
  p.epsilon = s.epsilon;
  return p;
}

// rows: of L numbers in shared memory, for kernels that keep them.
template <class T>
void launch_groups(void (*kept)(NormView<T>), void (*again)(NormView<T>), int rows, const NormView<T>& p,
                   const Execution& e) {
  const int64_t row = ((int64_t)p.each * p.pixels * (int64_t)sizeof(T) + 15) / 16 * 16;
  const int64_t bytes = kWarps * 8 + rows * row;
  const bool fits = bytes <= kSharedWithoutAsking;
  launch(fits ? kept : again, {p.images * p.groups, kThreads, fits ? (int)bytes : kWarps * 8, e.stream}, p);
}

template <class T>
void sum_images(const NormView<T>& p, int sum, const Matrix& out, const Execution& e) {
  if (!out.data || p.channels == 0) return;
  launch(norm_images_kernel<T>,
         {(p.channels + kSumChannels - 1) / kSumChannels, kThreads, kThreads * 8, e.stream},
         (const double*)p.sums + sum * p.images * p.channels, p.images, p.channels, (T*)out.data);
}

template <class T>
void run(const NormArguments& a, const Execution& e) {
  NormView<T> p = view_of<T>(a.problem, e);
  p.out = a.out.data;
  launch_groups<T>(norm_value_kernel<T, true>, norm_value_kernel<T, false>, 1, p, e);
}

template <class T>
void run(const NormGradArguments& a, const Execution& e) {
  NormView<T> p = view_of<T>(a.problem, e);
  p.grad = source_of(a.grad, 0, true);
  p.out_x = a.grad_x.data;
  launch_groups<T>(norm_grad_kernel<T, true>, norm_grad_kernel<T, false>, 2, p, e);
  sum_images(p, 0, a.grad_weight, e);
  sum_images(p, 1, a.grad_bias, e);
}

template <class T>
void run(const NormSecondArguments& a, const Execution& e) {
  NormView<T> p = view_of<T>(a.problem, e);
  p.grad = source_of(a.grad, 0, true);
  p.tangent = source_of(a.tangent_x, p.x.stride, p.last);
  p.tangent_weight = (const T*)a.tangent_weight.data;
  p.tangent_bias = (const T*)a.tangent_bias.data;
  p.out_x = a.out_x.data;
  p.out_grad = a.out_grad.data;
  p.wants_weight = a.out_weight.data != nullptr;
  launch_groups<T>(norm_second_kernel<T, true>, norm_second_kernel<T, false>, 3, p, e);
  sum_images(p, 0, a.out_weight, e);
}

template <class Arguments>
void run_any(const Arguments& a, const Execution& e) {
  a.problem.x.dtype == DType::float64 ? run<double>(a, e) : run<float>(a, e);
}

}  // namespace
}  // namespace cuda

int64_t group_norm_workspace_bytes(NormOp op, const NormShape& shape, DType, int) {
  return cuda::sums_of(op) * shape.images * shape.channels * 8;
}
void group_norm(const NormArguments& a, const Execution& e) {
  cuda::run_any(a, e);
}
void group_norm_grad(const NormGradArguments& a, const Execution& e) {
  cuda::run_any(a, e);
}
void group_norm_second(const NormSecondArguments& a, const Execution& e) {
  cuda::run_any(a, e);
}

}  // namespace decoct
