#include "isa.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "plan.h"

namespace decoct {
namespace cpu {
namespace {

const Engine* choose() {
  const char* forced = std::getenv("DECOCT_ISA");
  if (forced && !*forced) forced = nullptr;
  const auto wanted = [forced](const char* name) { return !forced || std::strcmp(forced, name) == 0; };
#if defined(__x86_64__)
  if (wanted("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("fma"))
    return &engine_avx512;
  if (wanted("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &engine_avx2;
#endif
  if (wanted("generic")) return &engine_generic;
  throw std::runtime_error(std::string("DECOCT_ISA=") + forced +
                           ": expected generic, avx2 or avx512, and one that this processor has");
}

}  // namespace

// Large scratch on huge pages: a fresh 64 MiB costs 16000 page faults otherwise, and rows 8 KiB apart a TLB
// miss each.
static void on_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = uintptr_t{2} << 20;
  const uintptr_t begin = ((uintptr_t)memory + page - 1) & ~(page - 1);
  const uintptr_t end = ((uintptr_t)memory + (uintptr_t)bytes) & ~(page - 1);
  if (begin < end) madvise((void*)begin, end - begin, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#else
  (void)memory, (void)bytes;
#endif
}

static const Execution& on_huge_pages(const Execution& e) {
  on_huge_pages(e.workspace, e.workspace_bytes);
  return e;
}

const Engine& engine() {
  static const Engine* const chosen = choose();
  return *chosen;
}

}  // namespace cpu

void kernel_sums(const SumsArguments& a, const Execution& e) {
  cpu::engine().kernel_sums(a, cpu::on_huge_pages(e));
}
void kernel_sums_hvp(const HvpArguments& a, const Execution& e) {
  cpu::engine().kernel_sums_hvp(a, cpu::on_huge_pages(e));
}
void kernel_matvec(const MatvecArguments& a, const Execution& e) {
  cpu::engine().kernel_matvec(a, cpu::on_huge_pages(e));
}
void segment_sums(const Clouds& clouds, const Matrix& out, const Execution& e) {
  cpu::engine().segment_sums(clouds, out, e);
}
void sinkhorn(const SinkhornArguments& a, const Execution& e) {
  cpu::engine().sinkhorn(a, cpu::on_huge_pages(e));
}
void mean_bandwidth(const Clouds& clouds, const Execution& e) {
  cpu::engine().mean_bandwidth(clouds, e);
}
void gradient_distance(const GradientArguments& a, const Execution& e) {
  // Results of a size at which allocators ask the system for fresh memory.
  const int64_t bytes = a.layout->classes * a.layout->elements * (a.layout->dtype == DType::float64 ? 8 : 4);
  if (bytes >= 32 << 20)
    for (void* out : {a.out_real, a.out_synthetic})
      if (out) cpu::on_huge_pages(out, bytes);
  cpu::engine().gradient_distance(a, e);
}
void group_norm(const NormArguments& a, const Execution& e) {
  cpu::engine().group_norm(a, e);
}
void group_norm_grad(const NormGradArguments& a, const Execution& e) {
  cpu::engine().group_norm_grad(a, e);
}
void group_norm_second(const NormSecondArguments& a, const Execution& e) {
  cpu::engine().group_norm_second(a, e);
}
int64_t group_norm_workspace_bytes(NormOp op, const NormShape& shape, DType rows, int threads) {
  return cpu::engine().group_norm_workspace_bytes(op, shape, rows, threads);
}
void segment_outer(const SegmentOuterArguments& a, const Execution& e) {
  cpu::engine().segment_outer(a, cpu::on_huge_pages(e));
}
void image_squares(const ImageSquaresArguments& a, const Execution& e) {
  cpu::engine().image_squares(a, cpu::on_huge_pages(e));
}
void image_gram(const ImageGramArguments& a, const Execution& e) {
  cpu::engine().image_gram(a, cpu::on_huge_pages(e));
}
int64_t barycenter_workspace_bytes(const BarycenterArguments& a, int threads) {
  check_barycenter(a, threads);
  return cpu::engine().barycenter_workspace_bytes(a, threads);
}
void barycenter(const BarycenterArguments& a, const Execution& e) {
  cpu::engine().barycenter(a, cpu::on_huge_pages(e));
}
void characteristic(const CharacteristicArguments& a, const Execution& e) {
  // Of a size at which allocators ask the system for fresh memory.
  const int64_t bytes = a.rows() * a.columns() * (a.type() == DType::float64 ? 8 : 4);
  if (a.products.data && a.op == CharacteristicOp::value && bytes >= 4 << 20)
    cpu::on_huge_pages(a.products.data, bytes);
  cpu::engine().characteristic(a, cpu::on_huge_pages(e));
}

// Of kernels whose work follows from their arguments.
static Plan plan_of(int64_t workspace_bytes) {
  Plan plan;
  plan.schedule.resize(sizeof(ScheduleHeader) / 4);
  auto& header = *(ScheduleHeader*)plan.schedule.data();
  header.version = kScheduleVersion;
  header.words = (int32_t)plan.schedule.size();
  plan.workspace_bytes = workspace_bytes;
  return plan;
}
Plan plan_segment_outer(const SegmentOuterArguments& a, int threads) {
  check_segment_outer(a, threads);
  return plan_of(cpu::engine().segment_outer_bytes(a) * threads);
}
Plan plan_image_squares(const LayerPair& pair, int threads) {
  check_layer_pair(pair, threads);
  return plan_of(cpu::engine().image_squares_bytes(pair) * threads);
}
Plan plan_image_gram(const ImageGramArguments& a, int threads) {
  check_image_gram(a, threads);
  return plan_of(cpu::engine().image_gram_bytes(a, threads));
}
Plan plan_random_projection(const RandomProjectionArguments& a, int threads) {
  check_random_projection(a, threads);
  return plan_of(cpu::engine().random_projection_bytes(a) * threads);
}
void random_projection(const RandomProjectionArguments& a, const Execution& e) {
  cpu::engine().random_projection(a, cpu::on_huge_pages(e));
}
Plan plan_characteristic(const CharacteristicArguments& a, int threads) {
  Plan plan;
  plan.schedule = characteristic_schedule(a, threads);
  plan.workspace_bytes = cpu::engine().characteristic_workspace(a);
  return plan;
}
int64_t workspace_bytes(const Sizes& sizes, const int32_t* schedule, int64_t words) {
  const auto& header = *(const ScheduleHeader*)schedule;
  if (words < (int64_t)sizeof header / 4 || header.version != kScheduleVersion || header.words != words ||
      header.need != sizes.need || header.terms != sizes.terms)
    throw std::invalid_argument("schedule: made for another call");
  if (sizes.op == Op::rows) return 0;
  return cpu::engine().workspace_bytes(sizes, header.chunks, header.tasks);
}
std::string isa_name() {
  return cpu::engine().name;
}

}  // namespace decoct
