// Tasks of some 64 KiB: their rows stay in cache between the pass that sums and the one that writes.
#include "../gradient_plan.h"

namespace decoct {

GradientLayout gradient_layout(GradientMetric metric, EpsilonForm form, double epsilon, DType dtype,
                               int64_t classes, const std::vector<GradientShape>& shapes) {
  constexpr int64_t elements = 1 << 14;
  const GradientCuts cuts{elements, 256, 1 << 16,
                          [](int64_t length) { return length < elements ? elements / length : int64_t{1}; }};
  return cut_gradients(cuts, metric, form, epsilon, dtype, classes, shapes);
}

}  // namespace decoct
