// Normalisation as the native tests and kernels_test check it: a call's memory, and naive sums in double. The
// second derivatives are those of the naive gradient by complex steps, which lose no digit.
#pragma once
#include <cmath>
#include <complex>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/interface.h"

namespace reference {

using decoct::DType;
using decoct::Matrix;
using decoct::NormShape;

struct NormCase {
  std::string name;
  NormShape shape;
  bool affine = true, relu = true;
  bool with_grad = true, with_tangents = true;  // of the second derivative
};

inline NormCase norm_case(const std::string& name, int64_t images, int64_t channels, int64_t groups,
                          int64_t height, int64_t width, int64_t pool_height, int64_t pool_width,
                          bool last = false) {
  NormCase test{name, {}};
  test.shape = {images, channels, groups, height, width, pool_height, pool_width, true, last, 1e-3};
  return test;
}

using Complex = std::complex<double>;
using Numbers = std::vector<Complex>;

// What a pass is a function of, and what it gives, in the order (image, channel, pixel) whatever the layout.
struct NormInput {
  Numbers x, weight, bias, grad, tangent_x, tangent_weight, tangent_bias;
};
struct NormGradient {
  Numbers x, weight, bias;
};

inline size_t place(const NormShape& s, int64_t n, int64_t c, int64_t pixel, int64_t pixels) {
  return (size_t)((n * s.channels + c) * pixels + pixel);
}

// use(n, first channel, mean, factor) for each group.
template <class Use>
void for_norm_groups(const NormShape& s, const Numbers& x, const Use& use) {
  const int64_t each = s.channels / s.groups;
  for (int64_t n = 0; n < s.images; ++n)
    for (int64_t g = 0; g < s.groups; ++g) {
      Complex mean = 0, variance = 0;
      const size_t first = place(s, n, g * each, 0, s.pixels()), count = (size_t)(each * s.pixels());
      for (size_t k = 0; k < count; ++k) mean += x[first + k];
      mean /= (double)count;
      for (size_t k = 0; k < count; ++k) variance += (x[first + k] - mean) * (x[first + k] - mean);
      use(n, g * each, mean, 1.0 / std::sqrt(variance / (double)count + s.epsilon));
    }
}

// The pooled pixel that a pixel belongs to, or -1.
inline int64_t window_of(const NormShape& s, int64_t pixel) {
  const int64_t i = pixel / s.width / s.pool_height, j = pixel % s.width / s.pool_width;
  return i < s.pooled_height() && j < s.pooled_width() ? i * s.pooled_width() + j : -1;
}

inline Numbers norm_value(const NormShape& s, const NormInput& in) {
  Numbers out((size_t)(s.images * s.channels * s.pooled_pixels()));
  for_norm_groups(s, in.x, [&](int64_t n, int64_t first, Complex mean, Complex factor) {
    for (int64_t c = first; c < first + s.channels / s.groups; ++c)
      for (int64_t p = 0; p < s.pixels(); ++p) {
        const Complex y = in.weight[c] * (in.x[place(s, n, c, p, s.pixels())] - mean) * factor + in.bias[c];
        const int64_t o = window_of(s, p);
        if (o >= 0 && !(s.relu && y.real() <= 0))
          out[place(s, n, c, o, s.pooled_pixels())] += y / (double)(s.pool_height * s.pool_width);
      }
  });
  return out;
}

inline NormGradient norm_gradient(const NormShape& s, const NormInput& in) {
  NormGradient out{Numbers(in.x.size()), Numbers(in.weight.size()), Numbers(in.bias.size())};
  for_norm_groups(s, in.x, [&](int64_t n, int64_t first, Complex mean, Complex factor) {
    const int64_t each = s.channels / s.groups;
    const double count = (double)(each * s.pixels());
    Numbers along;  // the cotangent of what the affine map is applied to
    Complex sum = 0, slope = 0;
    for (int64_t c = first; c < first + each; ++c)
      for (int64_t p = 0; p < s.pixels(); ++p) {
        const Complex hat = (in.x[place(s, n, c, p, s.pixels())] - mean) * factor;
        const int64_t o = window_of(s, p);
        const bool on = o >= 0 && !(s.relu && (in.weight[c] * hat + in.bias[c]).real() <= 0);
        const Complex g =
            on ? in.grad[place(s, n, c, o, s.pooled_pixels())] / (double)(s.pool_height * s.pool_width) : 0.0;
        out.weight[c] += g * hat;
        out.bias[c] += g;
        along.push_back(g * in.weight[c]);
        sum += along.back();
        slope += along.back() * hat;
      }
    for (size_t k = 0; k < along.size(); ++k) {
      const size_t at = place(s, n, first, 0, s.pixels()) + k;
      const Complex hat = (in.x[at] - mean) * factor;
      out.x[at] = factor * (along[k] - sum / count - hat * slope / count);
    }
  });
  return out;
}

// The derivative of <tangents, gradient> by one number of the input.
inline double norm_second(const NormShape& s, NormInput in, Numbers NormInput::* part, size_t at) {
  constexpr double step = 1e-100;
  (in.*part)[at] += Complex(0, step);
  const NormGradient g = norm_gradient(s, in);
  Complex sum = 0;
  for (size_t k = 0; k < g.x.size(); ++k) sum += in.tangent_x[k] * g.x[k];
  for (size_t k = 0; k < g.weight.size(); ++k)
    sum += in.tangent_weight[k] * g.weight[k] + in.tangent_bias[k] * g.bias[k];
  return sum.imag() / step;
}

// An engine's memory of one tensor: numbers in (image, channel, pixel) order, laid out as the shape says.
// A vector has no spare element, so that the address checker sees whatever is beside it.
struct NormTensor {
  DType type;
  int64_t rows, columns, pixels;  // pixels: 0: a matrix of parameters or statistics
  const NormShape* shape;
  std::vector<unsigned char> bytes;

  static int64_t size_of(DType type) { return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2; }
  NormTensor(DType t, int64_t r, int64_t c, int64_t p, const NormShape& s)
      : type(t), rows(r), columns(c), pixels(p), shape(&s), bytes((size_t)(r * c * size_of(t)), 0xff) {}

  Matrix matrix() { return {bytes.data(), rows, columns, columns, type}; }
  size_t index(size_t k) const {
    if (!pixels || !shape->channels_last) return k;
    const size_t p = (size_t)pixels, c = (size_t)shape->channels;
    const size_t image = k / (p * c), channel = k / p % c, pixel = k % p;
    return (image * p + pixel) * c + channel;
  }
  double at(size_t k) const {
    const unsigned char* from = bytes.data() + index(k) * (size_t)size_of(type);
    double wide;
    float single;
    uint16_t half;
    switch (type) {
      case DType::float64:
        std::memcpy(&wide, from, 8);
        return wide;
      case DType::float32:
        std::memcpy(&single, from, 4);
        return (double)single;
      default:
        std::memcpy(&half, from, 2);
    }
    if (type == DType::bfloat16) {
      const uint32_t bits = (uint32_t)half << 16;
      std::memcpy(&single, &bits, 4);
      return (double)single;
    }
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const double size = std::ldexp(exponent ? mantissa + 1024 : mantissa, (exponent ? exponent : 1) - 25);
    return exponent == 31 ? NAN : half >> 15 ? -size : size;
  }
  // Numbers with few bits, which every type holds.
  void put(size_t k, double value) {
    unsigned char* to = bytes.data() + index(k) * (size_t)size_of(type);
    const float single = (float)value;
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    uint16_t half = (uint16_t)(bits >> 16);
    if (type == DType::float16)
      half = (uint16_t)((bits >> 16 & 0x8000u) |
                        ((bits & 0x7fffffffu) ? ((bits & 0x7fffffffu) - 0x38000000u) >> 13 : 0));
    if (type == DType::float64) std::memcpy(to, &value, 8);
    if (type == DType::float32) std::memcpy(to, &single, 4);
    if (size_of(type) == 2) std::memcpy(to, &half, 2);
  }
  bool operator==(const NormTensor& o) const { return bytes == o.bytes; }
};

// One case's tensors: inputs with numbers in them, results without.
struct NormMemory {
  NormCase test;
  NormInput input;
  NormTensor x, weight, bias, grad, tangent_x, tangent_weight, tangent_bias;
  NormTensor mean, factor, out, grad_x, grad_weight, grad_bias, out_grad, out_x, out_weight;

  static DType wide(DType rows) { return rows == DType::float64 ? DType::float64 : DType::float32; }

  NormMemory(const NormCase& given, DType rows)
      : test(given),
        x(image(rows)),
        weight(parameter(rows)),
        bias(parameter(rows)),
        grad(pooled(rows)),
        tangent_x(image(rows)),
        tangent_weight(parameter(rows)),
        tangent_bias(parameter(rows)),
        mean(wide(rows), given.shape.images, given.shape.groups, 0, test.shape),
        factor(mean),
        out(pooled(rows)),
        grad_x(image(rows)),
        grad_weight(parameter(rows)),
        grad_bias(parameter(rows)),
        out_grad(pooled(rows)),
        out_x(image(rows)),
        out_weight(parameter(rows)) {
    test.shape.relu = test.relu;
    std::mt19937 random(5);
    fill(x, input.x, random, 1, 0.5);
    fill(weight, input.weight, random, 1, 0.75);
    fill(bias, input.bias, random, 0.25, 0);  // ReLU is on for many and off for many
    fill(grad, input.grad, random);
    fill(tangent_x, input.tangent_x, random);
    fill(tangent_weight, input.tangent_weight, random);
    fill(tangent_bias, input.tangent_bias, random);
    if (!test.affine) {
      for (Complex& w : input.weight) w = 1;
      for (Complex& b : input.bias) b = 0;
    }
  }
  NormMemory(const NormMemory&) = delete;  // tensors point to the shape

  NormTensor image(DType rows) const {
    const NormShape& s = test.shape;
    return {rows, s.images, s.channels * s.pixels(), s.pixels(), s};
  }
  NormTensor pooled(DType rows) const {
    const NormShape& s = test.shape;
    return {rows, s.images, s.channels * s.pooled_pixels(), s.pooled_pixels(), s};
  }
  NormTensor parameter(DType rows) const { return {wide(rows), test.shape.channels, 1, 0, test.shape}; }

  // Multiples of 1/32 below 4: a half holds them, and few of them are near the edge of ReLU.
  static void fill(NormTensor& tensor, Numbers& numbers, std::mt19937& random, double scale = 1,
                   double shift = 0) {
    std::normal_distribution<double> normal;
    for (size_t k = 0; k < (size_t)(tensor.rows * tensor.columns); ++k) {
      const double drawn = std::round(32 * (scale * normal(random) + shift)) / 32;
      numbers.push_back(std::fmax(-3.9375, std::fmin(3.9375, drawn)));
      tensor.put(k, numbers.back().real());
    }
  }

  decoct::NormProblem problem() {
    decoct::NormProblem p{};
    p.shape = test.shape;
    p.x = x.matrix();
    if (test.affine) p.weight = weight.matrix(), p.bias = bias.matrix();
    p.mean = mean.matrix();
    p.factor = factor.matrix();
    return p;
  }
  decoct::NormArguments value() { return {problem(), out.matrix()}; }
  decoct::NormGradArguments gradient() {
    return {problem(), grad.matrix(), grad_x.matrix(), grad_weight.matrix(), grad_bias.matrix()};
  }
  decoct::NormSecondArguments second() {
    const Matrix none{};
    const bool given = test.with_grad, moved = test.with_tangents;
    return {problem(),
            given ? grad.matrix() : none,
            moved ? tangent_x.matrix() : none,
            moved ? tangent_weight.matrix() : none,
            tangent_bias.matrix(),
            out_grad.matrix(),
            given ? out_x.matrix() : none,
            given ? out_weight.matrix() : none};
  }

  bool same_bits(const NormMemory& o) const {
    return out == o.out && mean == o.mean && factor == o.factor && grad_x == o.grad_x &&
           grad_weight == o.grad_weight && grad_bias == o.grad_bias && out_grad == o.out_grad &&
           out_x == o.out_x && out_weight == o.out_weight;
  }

  // report(what, error, largest number) for every kind of result. Of second derivatives, as many as `samples`
  // of each kind: one costs a whole gradient.
  void compare(int samples, const std::function<void(const char*, double, double)>& report) const {
    const auto hold = [&](const char* what, const NormTensor& ours, const Numbers& exact) {
      double worst = 0, largest = 0;
      for (size_t k = 0; k < exact.size(); ++k) {
        const double error = std::fabs(ours.at(k) - exact[k].real());
        worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
        largest = std::fmax(largest, std::fabs(exact[k].real()));
      }
      report(what, worst, largest);
    };
    const NormShape& s = test.shape;
    hold("value", out, norm_value(s, input));
    const NormGradient first = norm_gradient(s, input);
    hold("gradient by x", grad_x, first.x);
    hold("gradient by weight", grad_weight, first.weight);
    hold("gradient by bias", grad_bias, first.bias);
    NormInput in = input;
    if (!test.with_tangents) {
      for (Complex& t : in.tangent_x) t = 0;
      for (Complex& t : in.tangent_weight) t = 0;
    }
    const auto sample = [&](const char* what, const NormTensor& ours, Numbers NormInput::* part) {
      const size_t count = (in.*part).size(), step = count / (size_t)samples + 1;
      double worst = 0, largest = 0;
      for (size_t k = 0; k < count; k += step) {
        const double exact = norm_second(s, in, part, k), error = std::fabs(ours.at(k) - exact);
        worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
        largest = std::fmax(largest, std::fabs(exact));
      }
      report(what, worst, largest);
    };
    sample("second derivative by grad", out_grad, &NormInput::grad);
    if (!test.with_grad) return;
    sample("second derivative by x", out_x, &NormInput::x);
    sample("second derivative by weight", out_weight, &NormInput::weight);
  }
};

}  // namespace reference
