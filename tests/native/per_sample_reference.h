// Norms and inner products of per-sample gradients by naive double sums.
#pragma once
#include "layers_reference.h"

namespace layers {

// A layer's images, each a class of its own.
inline Layer alone(Layer l) {
  l.classes.assign((size_t)l.images(), 1);
  l.weighted = false;
  return l;
}

struct Rows {  // of images; and sums of the terms' sizes
  int64_t images, weights, biases;
  Gradients g;

  Rows(const Layer& l, const Grid4& a, const Grid4& d)
      : images(l.images()),
        weights(l.outputs * l.patch()),
        biases(l.outputs),
        g(gradients(alone(l), a, d, std::vector<double>((size_t)l.images(), 1.0))) {}
};

struct Product {
  double value = 0, size = 0;
};

inline Product product(const std::vector<double>& x, const std::vector<double>& x_size, int64_t i,
                       const std::vector<double>& y, const std::vector<double>& y_size, int64_t j,
                       int64_t numbers) {
  Product p;
  double lost = 0;  // of so many terms, by their additions
  for (int64_t k = 0; k < numbers; ++k) {
    const double term = x[(size_t)(i * numbers + k)] * y[(size_t)(j * numbers + k)], sum = p.value + term;
    lost += std::fabs(p.value) >= std::fabs(term) ? (p.value - sum) + term : (term - sum) + p.value;
    p.value = sum;
    p.size += x_size[(size_t)(i * numbers + k)] * y_size[(size_t)(j * numbers + k)];
  }
  p.value += lost;
  return p;
}

inline Product of_weights(const Rows& x, int64_t i, const Rows& y, int64_t j) {
  return product(x.g.weight, x.g.weight_size, i, y.g.weight, y.g.weight_size, j, x.weights);
}
inline Product of_biases(const Rows& x, int64_t i, const Rows& y, int64_t j) {
  return product(x.g.bias, x.g.bias_size, i, y.g.bias, y.g.bias_size, j, x.biases);
}

// Layers for every form of both kernels, each with images of another size that a Gram matrix takes too.
inline std::vector<Layer> sample_layers() {
  std::vector<Layer> all = all_layers();
  const Convolution linear{{1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, plain{{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
  const Convolution stride{{3, 2}, {2, 3}, {1, 0}, {1, 2}, 1}, groups{{2, 3}, {1, 1}, {0, 1}, {2, 1}, 2};
  all.push_back({"few", 6, 5, 1, 1, linear, {3}, false, true, false});
  all.push_back({"padded point", 37, 40, 3, 5, {{1, 1}, {1, 1}, {1, 2}, {1, 1}, 1}, {3}, false, true, false});
  all.push_back({"many channels", 60, 300, 4, 5, plain, {5}, false, true, false});
  all.push_back({"many outputs", 300, 60, 4, 5, plain, {3}, true, false, false});
  all.push_back({"strided", 34, 35, 7, 6, stride, {4}, false, false, false});
  all.push_back({"wide groups", 46, 42, 4, 5, groups, {3}, true, true, false});
  all.push_back({"corner", 3, 4, 2, 2, {{5, 5}, {3, 3}, {2, 2}, {1, 1}, 1}, {4}, false, false, false});
  return all;
}

}  // namespace layers
