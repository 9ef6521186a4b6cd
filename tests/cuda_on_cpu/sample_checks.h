// Norms and inner products of per-sample gradients for kernels_test.
#pragma once
#include "../native/per_sample_reference.h"
#include "kernel_checks.h"

namespace cases {

template <class T>
struct SampleResults {
  Grid<T> weight, bias, cross, own;

  bool same_bits(const SampleResults& o) const {
    return weight.same_bits(o.weight) && bias.same_bits(o.bias) && cross.same_bits(o.cross) &&
           own.same_bits(o.own);
  }
  bool spare_untouched() const {
    return weight.spare_untouched() && bias.spare_untouched() && cross.spare_untouched() &&
           own.spare_untouched();
  }
};

template <class T>
SampleResults<T> run_samples(const layers::Layer& l, const layers::Grid4& a, const layers::Grid4& d,
                             const layers::Grid4& b, const layers::Grid4& e, Precision precision, bool bias) {
  const int64_t n = l.images(), m = b.view.count;
  SampleResults<T> out{Grid<T>(n, 1, 2), Grid<T>(), Grid<T>(n, m, 3), Grid<T>(n, n, 3)};
  if (bias) out.bias = Grid<T>(n, 1, 2);
  ImageSquaresArguments squares{};
  squares.pair = {a.view, d.view, l.c, dtype_of<T>};
  squares.weight = out.weight.matrix();
  if (bias) squares.bias = out.bias.matrix();
  execute(plan_image_squares(squares.pair, 1), precision,
          [&](const Execution& execution) { image_squares(squares, execution); });
  for (const bool self : {false, true}) {
    ImageGramArguments gram{};
    gram.x = squares.pair;
    gram.self = self;
    if (!self) gram.y = {b.view, e.view, l.c, dtype_of<T>};
    gram.bias = bias;
    gram.gram = (self ? out.own : out.cross).matrix();
    execute(plan_image_gram(gram, 1), precision,
            [&](const Execution& execution) { image_gram(gram, execution); });
  }
  return out;
}

template <class T>
void test_sample_layer(const layers::Layer& l, DType rows, Precision precision = Precision::highest) {
  const std::string name =
      "samples " + l.name + " " + std::to_string((int)rows) + " " + precision_name<T>(precision);
  if (!selected(name)) return;
  const layers::Grid4 a(l.images(), l.channels, l.height, l.width, l.last_in, rows, 3);
  const layers::Grid4 d(l.images(), l.outputs, l.made(0), l.made(1), l.last_out, rows, 4);
  layers::Layer other = l;
  other.classes = {70};
  if (l.patch() * l.made(0) * l.made(1) > 64) other.classes = {3};
  other.height = l.height == 1 ? 1 : l.height + 1;
  const layers::Grid4 b(other.images(), l.channels, other.height, other.width, l.last_out, rows, 5);
  const layers::Grid4 e(other.images(), l.outputs, other.made(0), other.made(1), l.last_in, rows, 6);
  const layers::Rows x(l, a, d), y(other, b, e);
  const std::string kind = precision_name<T>(precision) + " samples";
  // Products of products lose twice what one loses, and one more rounding of gradients between them.
  const double unit = 3 * unit_of<T>(precision), sums = unit_of<T>(Precision::highest);
  for (const bool bias : {true, false}) {
    const std::string label = name + (bias ? "" : " without a bias");
    const SampleResults<T> ours =
        in_all_orders(label, [&] { return run_samples<T>(l, a, d, b, e, precision, bias); });
    Bound norm, of_bias, cross, own;
    const auto add = [](Bound& bound, double number, const layers::Product& exact, double part) {
      const double error = std::fabs(number - exact.value);
      if (exact.size > 0 || !(error == 0)) bound.add(error, part * exact.size);
    };
    const auto both = [&](const layers::Rows& u, int64_t i, const layers::Rows& v, int64_t j) {
      layers::Product p = layers::of_weights(u, i, v, j);
      const layers::Product q = layers::of_biases(u, i, v, j);
      if (bias) p.value += q.value, p.size += q.size;
      return p;
    };
    for (int64_t i = 0; i < l.images(); ++i) {
      add(norm, (double)ours.weight.at(i, 0), layers::of_weights(x, i, x, i), unit);
      if (bias) add(of_bias, (double)ours.bias.at(i, 0), layers::of_biases(x, i, x, i), sums);
      for (int64_t j = 0; j < other.images(); ++j)
        add(cross, (double)ours.cross.at(i, j), both(x, i, y, j), unit);
      for (int64_t j = 0; j < l.images(); ++j) {
        add(own, (double)ours.own.at(i, j), both(x, i, x, j), unit);
        if (j < i) check(ours.own.at(i, j) == ours.own.at(j, i), label + " symmetric");
      }
    }
    norm.report(label + " norm", kind + " norm");
    if (bias) of_bias.report(label + " bias", kind + " bias");
    cross.report(label + " cross", kind + " cross");
    own.report(label + " own", kind + " own");
    check(ours.spare_untouched(), label + " writes between rows");
  }
}

inline void test_samples() {
  for (const layers::Layer& l : layers::sample_layers()) {
    if (l.name == "large" || l.name.rfind("many", 0) == 0) continue;
    test_sample_layer<float>(l, DType::float32);
    test_sample_layer<double>(l, DType::float64);
    if (quick && l.name != "plain" && l.name != "few") continue;
    test_sample_layer<float>(l, DType::bfloat16);
    test_sample_layer<double>(l, DType::float32);
    test_sample_layer<float>(l, DType::float32, Precision::high);
    test_sample_layer<float>(l, DType::float32, Precision::medium);
  }
}

}  // namespace cases
