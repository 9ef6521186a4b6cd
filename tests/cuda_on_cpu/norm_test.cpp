// Normalisation for kernels_test.
#include "../native/norm_reference.h"

#include <memory>

#include "kernel_checks.h"

namespace cases {

using reference::norm_case;
using reference::NormCase;
using reference::NormMemory;

namespace {

// What is in device memory has the bounds that its tensors have: the address checker sees these.
template <class Call>
void with_scratch(NormOp op, const NormMemory& m, const Call& call) {
  std::vector<unsigned char> scratch((size_t)group_norm_workspace_bytes(op, m.test.shape, m.x.type, 1), 0xff);
  Execution e;
  e.workspace = scratch.data();
  call(e);
}

struct Run {
  std::unique_ptr<NormMemory> memory;
  bool same_bits(const Run& o) const { return memory->same_bits(*o.memory); }
};

Run run_norm(const NormCase& test, DType rows) {
  Run r{std::make_unique<NormMemory>(test, rows)};
  NormMemory& m = *r.memory;
  with_scratch(NormOp::value, m, [&](const Execution& e) { group_norm(m.value(), e); });
  with_scratch(NormOp::grad, m, [&](const Execution& e) { group_norm_grad(m.gradient(), e); });
  with_scratch(NormOp::second, m, [&](const Execution& e) { group_norm_second(m.second(), e); });
  return r;
}

void test_case(const NormCase& test, std::vector<DType> types) {
  const char* const names[] = {"float32", "float64", "float16", "bfloat16"};
  for (const DType rows : types) {
    const std::string name = "norm " + test.name + " " + names[(int)rows];
    if (!selected(name)) continue;
    const Run r = in_all_orders(name, [&] { return run_norm(test, rows); });
    const double unit = rows == DType::float64   ? 1e-13
                        : rows == DType::float32 ? 2e-5
                        : rows == DType::float16 ? 2e-3
                                                 : 1e-2;
    r.memory->compare(quick ? 8 : 40, [&](const char* what, double error, double largest) {
      Bound bound;
      bound.add(error, unit * (1 + largest));
      bound.report(name + ", " + what, std::string("norm ") + names[(int)rows]);
    });
  }
}

}  // namespace

void test_norms() {
  const std::vector<DType> both{DType::float32, DType::float64};
  const std::vector<DType> all{DType::float32, DType::float64, DType::float16, DType::bfloat16};
  test_case(norm_case("planes", 2, 6, 3, 5, 7, 1, 1), both);
  test_case(norm_case("quads", 2, 8, 2, 4, 8, 2, 2), all);
  test_case(norm_case("pooled planes", 2, 5, 5, 9, 7, 2, 2), both);
  test_case(norm_case("channels last", 3, 9, 9, 5, 6, 2, 2, true), all);
  // More than shared memory holds: of the second derivative, of all three.
  test_case(norm_case("large", 1, 4, 1, 31, 36, 2, 2), both);
  test_case(norm_case("larger", 1, 2, 2, 105, 120, 3, 3), both);
  NormCase bare = norm_case("bare", 18, 2, 2, 3, 4, 1, 1);
  bare.affine = bare.relu = false;
  test_case(bare, both);
  NormCase tangent = norm_case("tangent", 2, 6, 2, 6, 4, 2, 2);
  tangent.with_grad = false;
  test_case(tangent, both);
  if (quick) return;
  test_case(norm_case("signals", 2, 4, 2, 1, 19, 1, 2), all);
  test_case(norm_case("rows", 5, 40, 5, 1, 1, 1, 1), all);
  test_case(norm_case("wide windows", 2, 2, 1, 7, 11, 3, 3), all);
  tangent = norm_case("tangent of bias", 2, 6, 2, 6, 4, 2, 2);
  tangent.with_tangents = false;
  test_case(tangent, both);
}

}  // namespace cases
