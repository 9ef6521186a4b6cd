// Class gradients by naive double sums, and images as the engines take them.
#pragma once
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/interface.h"

namespace layers {

using namespace decoct;

struct Layer {
  std::string name;
  int64_t channels, outputs, height, width;
  Convolution c;
  std::vector<int> classes;  // images of each
  bool last_in, last_out;    // whether channels lie side by side
  bool weighted;

  int64_t images() const {
    int64_t count = 0;
    for (int images : classes) count += images;
    return count;
  }
  int64_t made(int k) const {
    const int64_t room = (k ? width : height) + 2 * c.padding[k] - c.dilation[k] * (c.kernel[k] - 1) - 1;
    return room < 0 ? 0 : room / c.stride[k] + 1;
  }
  int64_t patch() const { return channels / c.groups * c.kernel[0] * c.kernel[1]; }
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> ends{0};
    for (int images : classes) ends.push_back(ends.back() + images);
    return ends;
  }
};

// Images whose rows have gaps that hold NaN; numbers are bfloat16 in 32 bits, so that every type holds them.
struct Grid4 {
  Images view;
  std::vector<char> bytes;

  Grid4(int64_t count, int64_t channels, int64_t height, int64_t width, bool last, DType type,
        unsigned seed) {
    const int64_t gap = 1, size = type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2;
    view.count = count;
    view.channels = channels;
    view.height = height;
    view.width = width;
    view.dtype = type;
    if (last) {
      view.strides[1] = 1;
      view.strides[3] = channels + gap;
      view.strides[2] = width * view.strides[3];
      view.strides[0] = height * view.strides[2];
    } else {
      view.strides[3] = 1;
      view.strides[2] = width;
      view.strides[1] = height * width + gap;
      view.strides[0] = channels * view.strides[1];
    }
    bytes.assign((size_t)(count * view.strides[0] * size), (char)0xff);
    view.data = bytes.empty() ? nullptr : bytes.data();
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < channels; ++k)
        for (int64_t y = 0; y < height; ++y)
          for (int64_t x = 0; x < width; ++x) {
            const float drawn = (float)normal(random);
            uint32_t bits;
            std::memcpy(&bits, &drawn, 4);
            bits &= 0xffff0000u;
            float kept;
            std::memcpy(&kept, &bits, 4);
            char* to = bytes.data() + at(i, k, y, x) * size;
            const double wide = kept;
            const uint16_t half = (uint16_t)(bits >> 16);
            std::memcpy(to,
                        type == DType::float64   ? (const void*)&wide
                        : type == DType::float32 ? (const void*)&kept
                                                 : (const void*)&half,
                        (size_t)size);
            numbers.push_back(kept);
          }
  }

  int64_t at(int64_t i, int64_t k, int64_t y, int64_t x) const {
    return i * view.strides[0] + k * view.strides[1] + y * view.strides[2] + x * view.strides[3];
  }
  // Without gaps; 0 around the images.
  double number(int64_t i, int64_t k, int64_t y, int64_t x) const {
    if (y < 0 || y >= view.height || x < 0 || x >= view.width) return 0;
    return numbers[(size_t)(((i * view.channels + k) * view.height + y) * view.width + x)];
  }

  std::vector<double> numbers;
};

struct Gradients {
  std::vector<double> weight, weight_size, bias, bias_size;  // and sums of the terms' sizes
};

inline Gradients gradients(const Layer& l, const Grid4& a, const Grid4& d, const std::vector<double>& w) {
  const std::vector<int64_t> ends = l.offsets();
  const int64_t segments = (int64_t)l.classes.size(), patch = l.patch();
  const int64_t of_group = l.outputs / l.c.groups, channels = l.channels / l.c.groups;
  Gradients g;
  g.weight.resize((size_t)(segments * l.outputs * patch));
  g.weight_size = g.weight;
  g.bias.resize((size_t)(segments * l.outputs));
  g.bias_size = g.bias;
  for (int64_t s = 0; s < segments; ++s)
    for (int64_t i = ends[s]; i < ends[s + 1]; ++i)
      for (int64_t o = 0; o < l.outputs; ++o)
        for (int64_t y = 0; y < l.made(0); ++y)
          for (int64_t x = 0; x < l.made(1); ++x) {
            const double slope = w[(size_t)i] * d.number(i, o, y, x);
            g.bias[(size_t)(s * l.outputs + o)] += slope;
            g.bias_size[(size_t)(s * l.outputs + o)] += std::fabs(slope);
            size_t k = (size_t)((s * l.outputs + o) * patch);
            for (int64_t channel = 0; channel < channels; ++channel)
              for (int64_t v = 0; v < l.c.kernel[0]; ++v)
                for (int64_t u = 0; u < l.c.kernel[1]; ++u, ++k) {
                  const double term =
                      slope * a.number(i, o / of_group * channels + channel,
                                       y * l.c.stride[0] - l.c.padding[0] + v * l.c.dilation[0],
                                       x * l.c.stride[1] - l.c.padding[1] + u * l.c.dilation[1]);
                  g.weight[k] += term;
                  g.weight_size[k] += std::fabs(term);
                }
          }
  return g;
}

inline std::vector<Layer> all_layers() {
  const Convolution linear{{1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, plain{{3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
  const Convolution odd{{3, 2}, {2, 3}, {1, 0}, {1, 2}, 1}, groups{{2, 3}, {1, 1}, {0, 4}, {2, 1}, 3};
  return {
      {"linear", 37, 19, 1, 1, linear, {3, 0, 70, 1}, true, true, true},
      {"tokens", 70, 67, 1, 9, linear, {2, 7}, true, true, false},
      {"plain", 3, 70, 6, 7, plain, {5, 0, 1}, false, false, false},
      {"large", 9, 50, 21, 20, plain, {2, 1}, false, false, true},
      {"last", 20, 18, 7, 6, plain, {3, 2}, true, true, true},
      {"odd", 4, 5, 12, 13, odd, {0, 4}, false, true, false},
      {"groups", 6, 9, 8, 5, groups, {1, 6}, true, false, true},
      {"row", 2, 3, 1, 300, {{1, 5}, {1, 1}, {0, 2}, {1, 1}, 1}, {2}, false, false, false},
      {"nothing", 3, 4, 2, 2, {{4, 4}, {1, 1}, {0, 0}, {1, 1}, 1}, {2, 1}, false, false, false},
      {"no images", 3, 4, 5, 5, plain, {0, 0}, false, false, false},
  };
}

}  // namespace layers
