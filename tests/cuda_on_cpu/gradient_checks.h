// Distances of lists of gradients for kernels_test.
#pragma once
#include "../native/gradient_reference.h"
#include "kernel_checks.h"

namespace cases {

inline void test_lists() {
  for (const reference::GradientCase& test : reference::gradient_cases()) {
    if (!selected(reference::full_name(test))) continue;
    // Much the same work as in other types. One metric has rows of its own, one the whole list as a row.
    const bool either = test.metric == GradientMetric::cosine_l2 || test.metric == GradientMetric::cosine;
    if (quick && test.dtype != DType::float32 && !either) continue;
    const auto report = [](bool good, const std::string& name, double error, double allowed) {
      check(good, name, error, allowed);
    };
    const auto repeat = [](const std::string& name, const auto& run) {
      return in_all_orders(name, [&] { return run(1); });
    };
    test.dtype == DType::float64 ? reference::test_gradients<double>(test, report, repeat)
                                 : reference::test_gradients<float>(test, report, repeat);
  }
}

}  // namespace cases
