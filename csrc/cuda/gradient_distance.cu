// Distances of lists of gradients on CUDA: two launches for every 64 tensors.
#include "gradient_distance.cuh"

#include "../gradient_plan.h"

namespace decoct {
namespace cuda {
namespace {

template <class T, class E, bool Second>
void run_list(const GradientArguments& a, const Execution& e) {
  const GradientLayout& layout = *a.layout;
  if (layout.classes == 0) return;
  ListProblem<T> p{};
  p.class_tasks = (int32_t)layout.tasks;
  p.sums = layout.pieces ? kAllSums : 1;
  p.classes = (int32_t)layout.classes;
  p.rule = {layout.metric, layout.form, layout.epsilon};
  p.u = (const T*)a.tangent_real;
  p.w = (const T*)a.tangent_synthetic;
  p.out_a = (T*)a.out_real;
  p.out_b = (T*)a.out_synthetic;
  p.value = (T*)a.value;
  p.partial = (double*)e.workspace;
  p.running = p.partial + layout.classes * layout.tasks * p.sums;
  // Sums of a list that is one row come from all first launches.
  for (const bool first : {true, false}) {
    for (int64_t begin = 0; begin < a.part_count; begin += kListTensors) {
      const int64_t count = std::min<int64_t>(kListTensors, a.part_count - begin);
      p.count = (int32_t)count;
      p.first = begin == 0;
      p.last = begin + count == a.part_count;
      p.pieces = false;
      for (int64_t i = 0; i < count; ++i) {
        const GradientPart& part = a.parts[begin + i];
        p.tensors[i] = {a.real[begin + i],         a.synthetic[begin + i],
                        part.shape.inner,          part.offset,
                        (int32_t)part.shape.outer, (int32_t)part.shape.rows,
                        (int32_t)part.first_task,  (int32_t)part.tasks,
                        (int32_t)part.size,        part.cut};
        p.pieces = p.pieces || part.cut == GradientCut::pieces;
      }
      const ListTensor& end = p.tensors[count - 1];
      p.first_task = p.tensors[0].first_task;
      p.tasks = end.first_task + end.tasks - p.first_task;
      const int64_t blocks = layout.classes * p.tasks;
      if (first) {
        launch(gradient_first_kernel<T, E, Second>,
               {blocks, kThreads, kWarps * kAllSums * 32 * (int)sizeof(double), e.stream}, p);
        continue;
      }
      const bool writes = p.pieces && (a.out_real || a.out_synthetic);
      launch(gradient_second_kernel<T, E, Second>,
             {(Second ? 0 : layout.classes) + (writes ? blocks : 0), kThreads,
              kWarps * kAllSums * (int)sizeof(double), e.stream},
             p);
    }
  }
}

template <class T, class E>
void run(const GradientArguments& a, const Execution& e) {
  a.tangent_real ? run_list<T, E, true>(a, e) : run_list<T, E, false>(a, e);
}

}  // namespace
}  // namespace cuda

GradientLayout gradient_layout(GradientMetric metric, EpsilonForm form, double epsilon, DType dtype,
                               int64_t classes, const std::vector<GradientShape>& shapes) {
  // Rows of 1024 numbers and more are a block's, shorter ones a warp's.
  const GradientCuts cuts{4096, cuda::kColumnRows, 1 << 14, [](int64_t length) -> int64_t {
                            return length <= cuda::kShortRow ? cuda::kWarps : 1;
                          }};
  return cut_gradients(cuts, metric, form, epsilon, dtype, classes, shapes);
}

void gradient_distance(const GradientArguments& a, const Execution& e) {
  switch (a.layout->dtype) {
    case DType::float64:
      return cuda::run<double, double>(a, e);
    case DType::float16:
      return cuda::run<float, cuda::Half>(a, e);
    case DType::bfloat16:
      return cuda::run<float, cuda::Bfloat>(a, e);
    default:
      return cuda::run<float, float>(a, e);
  }
}

}  // namespace decoct
