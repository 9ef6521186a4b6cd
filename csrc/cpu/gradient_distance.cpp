// Compiled once for each instruction set, as engine.cpp is.
#include "gradient_distance.inl"

namespace decoct {
namespace DECOCT_ISA {

void gradient_distance(const GradientArguments& a, const Execution& e) {
  const bool second = a.tangent_real != nullptr;
  switch (a.layout->dtype) {
    case DType::float64:
      return GradientRun<double, double>{a, e, second}.run();
    case DType::float16:
      return GradientRun<float, Half>{a, e, second}.run();
    case DType::bfloat16:
      return GradientRun<float, Bfloat>{a, e, second}.run();
    default:
      return GradientRun<float, float>{a, e, second}.run();
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
