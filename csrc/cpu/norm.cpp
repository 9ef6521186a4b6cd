// Normalisation on the CPU: compiled once for each instruction set, as engine.cpp is. Tasks are groups of an
// image; what is summed over images waits in double until all are done and is added in their order.
#include "norm.h"

#include <type_traits>

#include "norm.inl"

namespace decoct {
namespace DECOCT_ISA {
namespace {

constexpr int64_t kColumnsOfTask = 64;  // of sums over the images

// use(task, worker) for every group, several to a task where they are small.
template <class T, bool Last, class Use>
void for_groups(const NormRun<T, Last>& run, const Execution& e, Use use) {
  struct Context {
    const NormRun<T, Last>& run;
    Use& use;
    int64_t at_a_time;
  };
  const int64_t size = run.units * run.pixels * (Last ? width<T> : 1) + 1;
  Context context{run, use, size < kNormTask ? kNormTask / size : 1};
  const int64_t tasks = (run.tasks() + context.at_a_time - 1) / context.at_a_time;
  cpu::parallel_for(tasks, e.threads, &context, [](void* p, int64_t task, int worker) {
    const Context& c = *(const Context*)p;
    const int64_t begin = task * c.at_a_time, all = c.run.tasks();
    const int64_t end = begin + c.at_a_time < all ? begin + c.at_a_time : all;
    for (int64_t k = begin; k < end; ++k) c.use(k, worker);
  });
}

// out[c] = the sum over images of the first of `each` numbers that they have for every channel.
template <class T>
void sum_images(const double* numbers, int64_t each, const NormShape& shape, const Matrix& out,
                const Execution& e) {
  if (!out.data) return;
  struct Context {
    const double* numbers;
    int64_t each, images, channels;
    T* out;
  } context{numbers, each, shape.images, shape.channels, (T*)out.data};
  const int64_t tasks = (shape.channels + kColumnsOfTask - 1) / kColumnsOfTask;
  const int threads = shape.images * shape.channels < kNormTask ? 1 : e.threads;
  cpu::parallel_for(tasks, threads, &context, [](void* p, int64_t task, int) {
    const Context& c = *(const Context*)p;
    const int64_t begin = task * kColumnsOfTask;
    const int64_t count = c.channels - begin < kColumnsOfTask ? c.channels - begin : kColumnsOfTask;
    double sums[kColumnsOfTask] = {};
    for (int64_t n = 0; n < c.images; ++n)
      for (int64_t k = 0; k < count; ++k) sums[k] += c.numbers[(n * c.channels + begin + k) * c.each];
    for (int64_t k = 0; k < count; ++k) c.out[begin + k] = (T)sums[k];
  });
}

// The sums that images leave come first in the workspace, then the workers' scratch.
constexpr int64_t sums_of(NormOp op) {
  return op == NormOp::value ? 0 : op == NormOp::grad ? 2 : 3;
}
int64_t sums_bytes(NormOp op, const NormShape& shape) {
  return round_up(sums_of(op) * shape.images * shape.channels * 8, 64);
}

template <class T, bool Last>
NormRun<T, Last> begin(NormOp op, const NormProblem& p, const Execution& e) {
  NormRun<T, Last> run(op, p.shape, p.x.dtype);
  run.memory = (char*)e.workspace + sums_bytes(op, p.shape);
  return run;
}

template <class T, bool Last>
void run_value(const NormArguments& a, const Execution& e) {
  const auto run = begin<T, Last>(NormOp::value, a.problem, e);
  for_groups(run, e, [&](int64_t k, int worker) { NormGroup<T, Last>(run, k, worker).value(a); });
}

template <class T, bool Last>
void run_grad(const NormGradArguments& a, const Execution& e) {
  const NormShape& shape = a.problem.shape;
  const auto run = begin<T, Last>(NormOp::grad, a.problem, e);
  double *const weight = (double*)e.workspace, *const bias = weight + shape.images * shape.channels;
  for_groups(run, e,
             [&](int64_t k, int worker) { NormGroup<T, Last>(run, k, worker).grad(a, weight, bias); });
  sum_images<T>(weight, 1, shape, a.grad_weight, e);
  sum_images<T>(bias, 1, shape, a.grad_bias, e);
}

template <class T, bool Last>
void run_second(const NormSecondArguments& a, const Execution& e) {
  const auto run = begin<T, Last>(NormOp::second, a.problem, e);
  double* const weight = a.out_weight.data ? (double*)e.workspace : nullptr;
  for_groups(run, e, [&](int64_t k, int worker) { NormGroup<T, Last>(run, k, worker).second(a, weight); });
  sum_images<T>(weight, 3, a.problem.shape, a.out_weight, e);
}

template <class T, bool Last>
int64_t bytes(NormOp op, const NormShape& shape, DType rows, int threads) {
  const NormRun<T, Last> run(op, shape, rows);
  return sums_bytes(op, shape) + run.scratch.total() * (int64_t)sizeof(T) * threads;
}

// call(compute type, whether channels are last).
template <class Call>
auto with_layout(const NormShape& shape, DType rows, Call call) {
  if (rows == DType::float64)
    return shape.channels_last ? call(double{}, std::true_type{}) : call(double{}, std::false_type{});
  return shape.channels_last ? call(float{}, std::true_type{}) : call(float{}, std::false_type{});
}

}  // namespace

void group_norm(const NormArguments& a, const Execution& e) {
  with_layout(a.problem.shape, a.problem.x.dtype,
              [&](auto type, auto last) { run_value<decltype(type), last.value>(a, e); });
}
void group_norm_grad(const NormGradArguments& a, const Execution& e) {
  with_layout(a.problem.shape, a.problem.x.dtype,
              [&](auto type, auto last) { run_grad<decltype(type), last.value>(a, e); });
}
void group_norm_second(const NormSecondArguments& a, const Execution& e) {
  with_layout(a.problem.shape, a.problem.x.dtype,
              [&](auto type, auto last) { run_second<decltype(type), last.value>(a, e); });
}
int64_t norm_workspace_bytes(NormOp op, const NormShape& shape, DType rows, int threads) {
  return with_layout(shape, rows, [&](auto type, auto last) {
    return bytes<decltype(type), last.value>(op, shape, rows, threads);
  });
}

}  // namespace DECOCT_ISA
}  // namespace decoct
