// Random projections against naive sums, and over threads.
#include "projection_reference.h"

#include "problem.h"

namespace {

using projection_case::Setup;

template <class T>
std::vector<T> run(projection_case::Numbers& x, const Setup& setup, bool transposed, int threads) {
  std::vector<T> out = unwritten<T>((size_t)(setup.rows * setup.size));
  const RandomProjectionArguments a =
      projection_case::arguments(x, matrix(out, setup.rows, setup.size), transposed);
  execute(plan_random_projection(a, threads), threads, [&](const Execution& e) { random_projection(a, e); });
  return out;
}

template <class T>
void test_setup(const Setup& setup, DType rows) {
  projection_case::Numbers x(setup.rows, setup.columns, 3, rows, 1, 5);
  const double unit = sizeof(T) == 8 ? 2e-15 : 1e-6;
  for (const bool transposed : {false, true}) {
    const std::string name =
        "projection " + setup.name + " " + std::to_string((int)rows) + (transposed ? " transposed" : "");
    const projection_case::Exact exact = projection_case::exact(x, setup, transposed);
    const std::vector<T> one = run<T>(x, setup, transposed, 1);
    double worst = 0;
    for (size_t k = 0; k < one.size(); ++k) {
      const double share = std::fabs((double)one[k] - exact.value[k]) / exact.size[k];
      worst = share <= worst ? worst : std::isnan(share) ? INFINITY : share;
    }
    check(worst <= unit, name, worst, unit);
    for (const int threads : {2, 3})
      check(run<T>(x, setup, transposed, threads) == one, name + " on threads");
  }
}

}  // namespace

void test_projections() {
  for (const Setup& setup : projection_case::all_setups()) {
    test_setup<float>(setup, DType::float32);
    test_setup<float>(setup, DType::bfloat16);
    test_setup<double>(setup, DType::float64);
  }
  test_setup<float>({"threads", 200, 300, 300}, DType::float32);
}
