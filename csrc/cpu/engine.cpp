// The engine of one instruction set: compiled once for each, with -DDECOCT_ISA=generic|avx2|avx512 and its
// flags.
#include "barycenter.h"
#include "characteristic_mean.h"
#include "class_gradients.h"
#include "hvp.inl"
#include "isa.h"
#include "norm.h"
#include "per_sample.h"
#include "random_projection.h"
#include "sinkhorn.inl"

namespace decoct {
namespace DECOCT_ISA {

void gradient_distance(const GradientArguments& a, const Execution& e);  // gradient_distance.cpp

namespace {

Sizes planned(Op op, const Clouds& clouds, const Execution& e, int64_t columns) {
  const ScheduleHeader& header = *read_schedule(e).header;
  return sizes_of(op, clouds, columns, header.need, header.terms, e.threads,
                  (int64_t)header.kept_mebibytes << 20);
}

void kernel_sums(const SumsArguments& a, const Execution& e) {
  const Sizes sizes = planned(Op::sums, a.clouds, e, 1);
  sizes.rows == DType::float64 ? run_sums<double>(a, sizes, e) : run_sums<float>(a, sizes, e);
}

void kernel_sums_hvp(const HvpArguments& a, const Execution& e) {
  const Sizes sizes = planned(Op::hvp, a.clouds, e, 1);
  sizes.rows == DType::float64 ? run_hvp<double>(a, sizes, e) : run_hvp<float>(a, sizes, e);
}

void kernel_matvec(const MatvecArguments& a, const Execution& e) {
  const Sizes sizes = planned(Op::matvec, a.clouds, e, a.v.columns);
  sizes.rows == DType::float64 ? run_matvec<double>(a, sizes, e) : run_matvec<float>(a, sizes, e);
}

void sinkhorn(const SinkhornArguments& a, const Execution& e) {
  const Sizes sizes = planned(Op::sinkhorn, a.clouds, e, a.label_cost.data ? a.label_cost.rows : 1);
  sizes.rows == DType::float64 ? run_sinkhorn<double>(a, sizes, e) : run_sinkhorn<float>(a, sizes, e);
}

template <class T>
int64_t bytes(const Sizes& sizes, int64_t chunks, int64_t tasks) {
  if (sizes.op == Op::sinkhorn) return sinkhorn_bytes<T>(sizes);
  Arena arena{nullptr};
  int64_t scratch = 0;
  if (sizes.op == Op::sums) {
    State<T> state{};
    state_layout(state, arena, sizes, chunks, tasks, 0, [](auto...) {});
    scratch = state.scratch_bytes;
  } else if (sizes.op == Op::matvec) {
    MatvecRun<T> run{};
    matvec_layout(run, arena, sizes, chunks, tasks);
    scratch = run.state.scratch_bytes;
  } else {
    HvpRun<T> run{};
    hvp_layout(run, arena, sizes, chunks, tasks);
    scratch = run.state.scratch_bytes;
  }
  return arena.used + scratch * sizes.threads;
}

int64_t workspace_bytes(const Sizes& sizes, int64_t chunks, int64_t tasks) {
  return sizes.rows == DType::float64 ? bytes<double>(sizes, chunks, tasks)
                                      : bytes<float>(sizes, chunks, tasks);
}

}  // namespace
}  // namespace DECOCT_ISA

#define DECOCT_PASTE(a, b) a##b
#define DECOCT_ENGINE(isa) DECOCT_PASTE(engine_, isa)
#define DECOCT_TEXT(name) #name
#define DECOCT_NAME(isa) DECOCT_TEXT(isa)

namespace cpu {
const Engine DECOCT_ENGINE(DECOCT_ISA) = {DECOCT_NAME(DECOCT_ISA),
                                          DECOCT_ISA::kernel_sums,
                                          DECOCT_ISA::kernel_sums_hvp,
                                          DECOCT_ISA::kernel_matvec,
                                          DECOCT_ISA::run_segment_sums,
                                          DECOCT_ISA::sinkhorn,
                                          DECOCT_ISA::run_mean_bandwidth,
                                          DECOCT_ISA::workspace_bytes,
                                          DECOCT_ISA::group_norm,
                                          DECOCT_ISA::group_norm_grad,
                                          DECOCT_ISA::group_norm_second,
                                          DECOCT_ISA::norm_workspace_bytes,
                                          DECOCT_ISA::gradient_distance,
                                          DECOCT_ISA::segment_outer,
                                          DECOCT_ISA::segment_outer_bytes,
                                          DECOCT_ISA::image_squares,
                                          DECOCT_ISA::image_squares_bytes,
                                          DECOCT_ISA::image_gram,
                                          DECOCT_ISA::image_gram_bytes,
                                          DECOCT_ISA::random_projection,
                                          DECOCT_ISA::random_projection_bytes,
                                          DECOCT_ISA::characteristic,
                                          DECOCT_ISA::characteristic_workspace,
                                          DECOCT_ISA::barycenter,
                                          DECOCT_ISA::barycenter_workspace_bytes};
}  // namespace cpu
}  // namespace decoct
