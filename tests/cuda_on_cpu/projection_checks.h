// Random projections for kernels_test.
#pragma once
#include "../native/projection_reference.h"
#include "kernel_checks.h"

namespace cases {

template <class T>
void test_projection(const projection_case::Setup& setup, DType rows,
                     Precision precision = Precision::highest) {
  projection_case::Numbers x(setup.rows, setup.columns, 3, rows, 1, 5);
  for (const bool transposed : {false, true}) {
    const std::string name = "projection " + setup.name + " " + std::to_string((int)rows) + " " +
                             precision_name<T>(precision) + (transposed ? " transposed" : "");
    if (!selected(name)) continue;
    const projection_case::Exact exact = projection_case::exact(x, setup, transposed);
    const Grid<T> ours = in_all_orders(name, [&] {
      Grid<T> out(setup.rows, setup.size, 2);
      const RandomProjectionArguments a = projection_case::arguments(x, out.matrix(), transposed);
      execute(plan_random_projection(a, 1), precision, [&](const Execution& e) { random_projection(a, e); });
      return out;
    });
    compare_sums(ours, exact.value, exact.size, unit_of<T>(precision), name,
                 precision_name<T>(precision) + " projection");
  }
}

inline void test_projections() {
  for (const projection_case::Setup& setup : projection_case::all_setups()) {
    test_projection<float>(setup, DType::float32);
    test_projection<double>(setup, DType::float64);
    if (quick && setup.name != "small") continue;
    test_projection<float>(setup, DType::bfloat16);
    test_projection<float>(setup, DType::float32, Precision::high);
    test_projection<float>(setup, DType::float32, Precision::medium);
  }
}

}  // namespace cases
