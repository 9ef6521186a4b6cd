// Compiled once for each instruction set, as engine.cpp is.
#include "gradient_distance.inl"

namespace decoct {
namespace DECOCT_ISA {

void gradient_distance(const GradientArguments& a) {
  const bool second = a.tangent_real != nullptr;
  switch (a.layout->dtype) {
    case DType::float64:
      return GradientRun<double, double>{a, second}.run();
    case DType::float16:
      return GradientRun<float, Half>{a, second}.run();
    case DType::bfloat16:
      return GradientRun<float, Bfloat>{a, second}.run();
    default:
      return GradientRun<float, float>{a, second}.run();
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
