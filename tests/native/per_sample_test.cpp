// Norms and inner products of per-sample gradients without Python: against naive double sums, and bitwise the
// same on 1, 2 and 3 threads.
#include "per_sample_reference.h"
#include "problem.h"

namespace {

using layers::Grid4;
using layers::Layer;
using layers::Product;
using layers::Rows;

template <class T>
std::vector<T> squares(const Layer& l, const Grid4& a, const Grid4& d, int threads, bool bias) {
  const int64_t images = l.images();
  std::vector<T> weight = unwritten<T>((size_t)images), of_bias = unwritten<T>((size_t)(bias ? images : 0));
  ImageSquaresArguments arguments{};
  arguments.pair = {a.view, d.view, l.c, dtype_of<T>};
  arguments.weight = matrix(weight, images, 1);
  if (bias) arguments.bias = matrix(of_bias, images, 1);
  execute(plan_image_squares(arguments.pair, threads), threads,
          [&](const Execution& e) { image_squares(arguments, e); });
  weight.insert(weight.end(), of_bias.begin(), of_bias.end());
  return weight;
}

template <class T>
std::vector<T> gram(const Layer& l, const Grid4& a, const Grid4& d, const Grid4* b, const Grid4* e,
                    int threads, bool bias) {
  const int64_t n = l.images(), m = b ? b->view.count : n;
  std::vector<T> out = unwritten<T>((size_t)(n * m));
  ImageGramArguments arguments{};
  arguments.x = {a.view, d.view, l.c, dtype_of<T>};
  arguments.self = !b;
  if (b) arguments.y = {b->view, e->view, l.c, dtype_of<T>};
  arguments.bias = bias;
  arguments.gram = matrix(out, n, m);
  execute(plan_image_gram(arguments, threads), threads,
          [&](const Execution& e) { image_gram(arguments, e); });
  return out;
}

void check_number(double ours, const Product& exact, double unit, const std::string& name) {
  const double error = std::fabs(ours - exact.value), allowed = unit * exact.size;
  check(error <= allowed, name, error, allowed);
}

template <class T>
void test_layer(const Layer& l, DType rows) {
  const double unit = sizeof(T) == 8 ? 2e-14 : 4e-6;
  const Grid4 a(l.images(), l.channels, l.height, l.width, l.last_in, rows, 3);
  const Grid4 d(l.images(), l.outputs, l.made(0), l.made(1), l.last_out, rows, 4);
  Layer other = l;
  other.classes = {5};
  other.height = l.height == 1 ? 1 : l.height + 2;
  other.width = l.width == 1 ? 1 : l.width + 1;
  const Grid4 b(5, l.channels, other.height, other.width, l.last_out, rows, 5);
  const Grid4 e(5, l.outputs, other.made(0), other.made(1), l.last_in, rows, 6);
  const Rows x(l, a, d), y(other, b, e);
  const std::string name = "samples " + l.name + " " + std::to_string((int)rows);
  const int64_t n = l.images();
  for (const bool bias : {true, false}) {
    const std::vector<T> norms = squares<T>(l, a, d, 1, bias), cross = gram<T>(l, a, d, &b, &e, 1, bias),
                         own = gram<T>(l, a, d, nullptr, nullptr, 1, bias);
    const auto exact = [&](const Rows& u, int64_t i, const Rows& v, int64_t j) {
      Product p = layers::of_weights(u, i, v, j);
      const Product q = layers::of_biases(u, i, v, j);
      if (bias) p.value += q.value, p.size += q.size;
      return p;
    };
    for (int64_t i = 0; i < n; ++i) {
      check_number(norms[(size_t)i], layers::of_weights(x, i, x, i), unit, name + " norm");
      if (bias) check_number(norms[(size_t)(n + i)], layers::of_biases(x, i, x, i), unit, name + " bias");
      for (int64_t j = 0; j < 5; ++j)
        check_number(cross[(size_t)(i * 5 + j)], exact(x, i, y, j), unit, name + " cross");
      for (int64_t j = 0; j < n; ++j) {
        check_number(own[(size_t)(i * n + j)], exact(x, i, x, j), unit, name + " own");
        check(own[(size_t)(i * n + j)] == own[(size_t)(j * n + i)], name + " symmetric");
      }
    }
    for (const int threads : {2, 3})
      check(squares<T>(l, a, d, threads, bias) == norms && gram<T>(l, a, d, &b, &e, threads, bias) == cross &&
                gram<T>(l, a, d, nullptr, nullptr, threads, bias) == own,
            name + " threads");
  }
}

}  // namespace

void test_samples() {
  for (const Layer& l : layers::sample_layers()) {
    test_layer<float>(l, DType::float32);
    test_layer<float>(l, DType::bfloat16);
    test_layer<double>(l, DType::float64);
  }
  // Enough work for several threads, and bands of the pairs of pixels.
  const Convolution plain{{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, linear{{1, 1}, {1, 1}, {0, 0}, {1, 1}, 1};
  test_layer<float>({"threads", 30, 70, 14, 14, plain, {7}, false, false, false}, DType::float32);
  test_layer<float>({"bands", 64, 90, 20, 20, plain, {2}, false, false, false}, DType::float32);
  test_layer<float>({"long", 620, 600, 1, 400, linear, {1}, true, true, false}, DType::float32);
  test_layer<float>({"images", 20, 30, 1, 1, linear, {150}, true, true, false}, DType::float32);
}
