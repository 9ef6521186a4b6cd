// Normalisation of every layout and type against naive double sums, and bitwise the same with 1, 2 and 3
// threads.
#include "norm_reference.h"

#include <memory>

#include "problem.h"

void test_norm();

namespace {

using reference::norm_case;
using reference::NormCase;
using reference::NormMemory;

// Scratch that starts as NaN and has no spare byte.
template <class Call>
void with_scratch(NormOp op, const NormMemory& m, int threads, const Call& call) {
  Workspace workspace(group_norm_workspace_bytes(op, m.test.shape, m.x.type, threads));
  Execution e;
  e.workspace = workspace.data;
  e.threads = threads;
  call(e);
}

std::unique_ptr<NormMemory> run(const NormCase& test, DType rows, int threads) {
  auto m = std::make_unique<NormMemory>(test, rows);
  with_scratch(NormOp::value, *m, threads, [&](const Execution& e) { group_norm(m->value(), e); });
  with_scratch(NormOp::grad, *m, threads, [&](const Execution& e) { group_norm_grad(m->gradient(), e); });
  with_scratch(NormOp::second, *m, threads, [&](const Execution& e) { group_norm_second(m->second(), e); });
  return m;
}

void test_case(const NormCase& test) {
  for (const DType rows : {DType::float64, DType::float32, DType::float16, DType::bfloat16}) {
    const std::string name = "norm " + test.name + " of type " + std::to_string((int)rows);
    const auto one = run(test, rows, 1);
    const double unit = rows == DType::float64   ? 1e-13
                        : rows == DType::float32 ? 2e-5
                        : rows == DType::float16 ? 2e-3
                                                 : 1e-2;
    one->compare(60, [&](const char* what, double error, double largest) {
      check(error <= unit * (1 + largest), name + ", " + what, error, unit * (1 + largest));
    });
    for (const int threads : {2, 3}) check(run(test, rows, threads)->same_bits(*one), name + " threads");
  }
}

}  // namespace

void test_norm() {
  test_case(norm_case("planes", 3, 6, 3, 5, 7, 1, 1));
  test_case(norm_case("pooled planes", 2, 5, 5, 9, 7, 2, 2));
  test_case(norm_case("even planes", 2, 4, 2, 8, 8, 2, 2));
  test_case(norm_case("wide windows", 2, 2, 1, 7, 11, 3, 3));
  test_case(norm_case("signals", 2, 4, 2, 1, 19, 1, 2));
  test_case(norm_case("rows", 5, 12, 3, 1, 1, 1, 1));
  test_case(norm_case("large planes", 1, 2, 2, 70, 131, 2, 2));
  test_case(norm_case("channels last", 2, 37, 37, 5, 6, 2, 2, true));
  test_case(norm_case("whole vectors of channels", 2, 32, 32, 5, 4, 2, 2, true));
  test_case(norm_case("channels last, all pixels", 2, 16, 16, 3, 5, 1, 1, true));
  NormCase bare = norm_case("bare", 2, 6, 2, 5, 4, 1, 1);
  bare.affine = bare.relu = false;
  test_case(bare);
  NormCase tangent = norm_case("tangent", 2, 6, 2, 6, 4, 2, 2);
  tangent.with_grad = false;
  test_case(tangent);
  tangent = norm_case("tangent of bias", 2, 6, 2, 6, 4, 2, 2);
  tangent.with_tangents = false;
  test_case(tangent);
}
