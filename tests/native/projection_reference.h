// Random projections by naive double sums: every sign is asked for by its place.
#pragma once
#include "../../csrc/philox.h"
#include "characteristic_reference.h"

namespace projection_case {

using namespace decoct;
using characteristic_case::Numbers;

struct Setup {
  std::string name;
  int64_t rows, columns, size;  // of x, and columns of the result
};

// Less and more than a tile, a counter of signs and a step of the depth.
inline std::vector<Setup> all_setups() {
  return {{"small", 3, 7, 5},
          {"one", 1, 1, 1},
          {"edges", 97, 129, 65},
          {"deep", 5, 601, 33},
          {"wide", 4, 31, 257}};
}

constexpr uint64_t kSeed = 0xfedcba9876543210ull, kStream = 0x123456789abull;
constexpr double kFactor = 0.375;

inline double sign_at(int64_t j, int64_t d) {
  uint32_t words[4] = {(uint32_t)(d / 128), (uint32_t)j, (uint32_t)kStream, (uint32_t)(kStream >> 32)};
  philox(words, kSeed, [](uint32_t m, uint32_t w) { return (uint32_t)((uint64_t)m * w >> 32); });
  return words[d / 32 % 4] >> (d % 32) & 1 ? -1 : 1;
}

// Results, and the sums of the sizes of their terms.
struct Exact {
  std::vector<double> value, size;
};

inline Exact exact(const Numbers& x, const Setup& setup, bool transposed) {
  std::vector<double> signs;  // (columns of x, columns of the result)
  for (int64_t k = 0; k < setup.columns; ++k)
    for (int64_t c = 0; c < setup.size; ++c) signs.push_back(transposed ? sign_at(k, c) : sign_at(c, k));
  Exact found;
  for (int64_t i = 0; i < setup.rows; ++i)
    for (int64_t c = 0; c < setup.size; ++c) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < setup.columns; ++k) {
        const double number = x.values[(size_t)(i * setup.columns + k)];
        sum += number * signs[(size_t)(k * setup.size + c)];
        size += std::fabs(number);
      }
      found.value.push_back(kFactor * sum);
      found.size.push_back(kFactor * size);
    }
  return found;
}

inline RandomProjectionArguments arguments(Numbers& x, const Matrix& out, bool transposed) {
  RandomProjectionArguments a{};
  a.x = x.matrix();
  a.out = out;
  a.seed = kSeed;
  a.stream = kStream;
  a.factor = kFactor;
  a.transposed = transposed;
  return a;
}

}  // namespace projection_case
