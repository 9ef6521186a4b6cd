// Distances of lists of gradients on the CPU: against naive sums, and the same bits with any number of
// threads.
#include "gradient_reference.h"
#include "problem.h"

void test_gradient_distance();

void test_gradient_distance() {
  for (const reference::GradientCase& test : reference::gradient_cases()) {
    const auto report = [](bool good, const std::string& name, double error, double allowed) {
      check(good, name, error, allowed);
    };
    const auto repeat = [](const std::string& name, const auto& run) {
      const auto one = run(1);
      for (const int threads : {2, 3}) check(run(threads).same_bits(one), name + " threads");
      return one;
    };
    test.dtype == DType::float64 ? reference::test_gradients<double>(test, report, repeat)
                                 : reference::test_gradients<float>(test, report, repeat);
  }
}
