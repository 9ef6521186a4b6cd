// Class gradients for kernels_test.
#pragma once
#include "../native/layers_reference.h"
#include "kernel_checks.h"

namespace cases {

using layers::Grid4;
using layers::Layer;

template <class T>
struct LayerResults {
  Grid<T> weight, bias;

  bool same_bits(const LayerResults& o) const { return weight.same_bits(o.weight) && bias.same_bits(o.bias); }
};

template <class T>
LayerResults<T> run_layer(const Layer& l, const Grid4& a, const Grid4& d, Grid<T>& w, Precision precision,
                          bool bias) {
  const std::vector<int64_t> ends = l.offsets();
  const int64_t segments = (int64_t)l.classes.size();
  LayerResults<T> out{Grid<T>(segments, l.outputs * l.patch(), 3), Grid<T>()};
  if (bias) out.bias = Grid<T>(segments, l.outputs, 3);
  SegmentOuterArguments arguments{};
  arguments.activations = a.view;
  arguments.gradients = d.view;
  if (l.weighted) arguments.weights = w.matrix();
  arguments.convolution = l.c;
  arguments.offsets = ends.data();
  arguments.segments = segments;
  arguments.type = dtype_of<T>;
  arguments.weight = out.weight.matrix();
  if (bias) arguments.bias = out.bias.matrix();
  execute(plan_segment_outer(arguments, 1), precision,
          [&](const Execution& e) { segment_outer(arguments, e); });
  return out;
}

template <class T>
void test_layer(const Layer& l, DType rows, Precision precision = Precision::highest) {
  const std::string name =
      "layers " + l.name + " " + std::to_string((int)rows) + " " + precision_name<T>(precision);
  if (!selected(name)) return;
  const Grid4 a(l.images(), l.channels, l.height, l.width, l.last_in, rows, 3);
  const Grid4 d(l.images(), l.outputs, l.made(0), l.made(1), l.last_out, rows, 4);
  Grid<T> w(l.images(), 1);
  std::vector<double> wide;
  for (int64_t i = 0; i < l.images(); ++i) {
    w.data[(size_t)i] = (T)(0.25 * (double)(1 + i % 5));
    wide.push_back(l.weighted ? (double)w.data[(size_t)i] : 1.0);
  }
  const layers::Gradients exact = layers::gradients(l, a, d, wide);
  for (const bool bias : {true, false}) {
    const std::string label = name + (bias ? "" : " without a bias");
    const LayerResults<T> ours = in_all_orders(label, [&] { return run_layer(l, a, d, w, precision, bias); });
    const double unit = unit_of<T>(precision);
    const std::string kind = precision_name<T>(precision) + " layers";
    compare_sums(ours.weight, exact.weight, exact.weight_size, unit, label + " weight", kind + " weight");
    // Sums of no products: as exact as the type in every precision.
    const double sums = unit_of<T>(Precision::highest);
    if (bias) compare_sums(ours.bias, exact.bias, exact.bias_size, sums, label + " bias", kind + " bias");
  }
}

inline void test_layers() {
  std::vector<Layer> all = layers::all_layers();
  const Convolution plain{{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
  // Segments of several parts, whose sums a second kernel adds.
  all.push_back({"parts", 2, 3, 30, 30, plain, {7, 0, 1}, false, false, true});
  for (const Layer& l : all) {
    test_layer<float>(l, DType::float32);
    test_layer<double>(l, DType::float64);
    if (quick && l.name != "plain" && l.name != "tokens") continue;
    test_layer<float>(l, DType::bfloat16);
    test_layer<double>(l, DType::float32);
    test_layer<float>(l, DType::float32, Precision::high);
    test_layer<float>(l, DType::float32, Precision::medium);
  }
}

}  // namespace cases
