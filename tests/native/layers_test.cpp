// Class gradients without Python: against naive double sums, and bitwise the same on 1, 2 and 3 threads.
#include "layers_reference.h"
#include "problem.h"

namespace {

using layers::Grid4;
using layers::Layer;

template <class T>
struct Results {
  std::vector<T> weight, bias;
};

template <class T>
Results<T> run(const Layer& l, const Grid4& a, const Grid4& d, std::vector<T>& w, int threads, bool bias) {
  const std::vector<int64_t> ends = l.offsets();
  const int64_t segments = (int64_t)l.classes.size();
  Results<T> out{unwritten<T>((size_t)(segments * l.outputs * l.patch())),
                 unwritten<T>((size_t)(bias ? segments * l.outputs : 0))};
  SegmentOuterArguments arguments{};
  arguments.activations = a.view;
  arguments.gradients = d.view;
  if (l.weighted) arguments.weights = matrix(w, l.images(), 1);
  arguments.convolution = l.c;
  arguments.offsets = ends.data();
  arguments.segments = segments;
  arguments.type = dtype_of<T>;
  arguments.weight = matrix(out.weight, segments, l.outputs * l.patch());
  if (bias) arguments.bias = matrix(out.bias, segments, l.outputs);
  execute(plan_segment_outer(arguments, threads), threads,
          [&](const Execution& e) { segment_outer(arguments, e); });
  return out;
}

template <class T>
double excess(const std::vector<T>& ours, const std::vector<double>& exact, const std::vector<double>& size) {
  double worst = 0;
  for (size_t k = 0; k < exact.size(); ++k) {
    const double error = std::fabs((double)ours[k] - exact[k]) / (size[k] > 0 ? size[k] : 1);
    worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
  }
  return worst;
}

template <class T>
void test_layer(const Layer& l, DType rows) {
  const Grid4 a(l.images(), l.channels, l.height, l.width, l.last_in, rows, 3);
  const Grid4 d(l.images(), l.outputs, l.made(0), l.made(1), l.last_out, rows, 4);
  std::vector<T> w;
  std::vector<double> wide;
  for (int64_t i = 0; i < l.images(); ++i) {
    w.push_back((T)(0.25 * (1 + i % 5)));
    wide.push_back(l.weighted ? 0.25 * (1 + i % 5) : 1.0);
  }
  const layers::Gradients exact = layers::gradients(l, a, d, wide);
  const std::string name = "layer " + l.name + " " + std::to_string((int)rows);
  const Results<T> one = run(l, a, d, w, 1, true);
  const double allowed = sizeof(T) == 8 ? 2e-14 : 4e-6;
  const double weight = excess(one.weight, exact.weight, exact.weight_size),
               bias = excess(one.bias, exact.bias, exact.bias_size);
  check(weight <= allowed, name + " weight", weight, allowed);
  check(bias <= allowed, name + " bias", bias, allowed);
  for (const int threads : {2, 3}) {
    const Results<T> other = run(l, a, d, w, threads, true);
    check(!std::memcmp(other.weight.data(), one.weight.data(), one.weight.size() * sizeof(T)) &&
              !std::memcmp(other.bias.data(), one.bias.data(), one.bias.size() * sizeof(T)),
          name + " threads");
  }
  check(run(l, a, d, w, 2, false).weight == one.weight, name + " without a bias");
}

}  // namespace

void test_layers() {
  for (const Layer& l : layers::all_layers()) {
    test_layer<float>(l, DType::float32);
    test_layer<float>(l, DType::bfloat16);
    test_layer<double>(l, DType::float64);
  }
  // Enough work for several threads.
  const Convolution plain{{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
  test_layer<float>({"threads", 30, 70, 14, 14, plain, {3, 2}, false, false, true}, DType::float32);
}
