// Distances of lists of gradients by naive double sums, and calls of the engine, for the tests of every
// backend.
#pragma once
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/interface.h"

namespace reference {

using namespace decoct;

struct GradientCase {
  std::string name;
  GradientMetric metric = GradientMetric::row_cosine;
  std::vector<GradientShape> shapes;
  int64_t classes = 2;
  DType dtype = DType::float32;
  EpsilonForm form = EpsilonForm::product;
  double epsilon = 0.5;
};

// Numbers of 8 bits, so that every type holds them, a's never those of b; the second row of the first tensor
// of a is 0 and stays so.
struct GradientData {
  std::vector<std::vector<double>> a, b, u, w;  // of each tensor

  explicit GradientData(const GradientCase& test) {
    uint32_t state = 12345;
    for (auto* list : {&a, &b, &u, &w})
      for (const GradientShape& s : test.shapes) {
        std::vector<double> numbers((size_t)(test.classes * s.outer * s.rows * s.inner));
        for (double& number : numbers) {
          state = state * 1664525u + 1013904223u;
          number = ((int)(state >> 24) - (list == &b ? 127 : 127.5)) / 64;
        }
        list->push_back(numbers);
      }
    const GradientShape& s = test.shapes[0];
    for (int64_t o = 0; s.rows > 1 && o < s.outer; ++o)
      for (int64_t i = 0; i < s.inner; ++i)
        for (auto* list : {&a, &u}) (*list)[0][(size_t)((o * s.rows + 1) * s.inner + i)] = 0;
  }
};

struct GradientResult {
  std::vector<double> value;
  std::vector<std::vector<double>> a, b;
};

// One row, wherever its numbers lie.
inline double add_row(const GradientCase& test, const std::vector<const double*>& a,
                      const std::vector<const double*>& b, const std::vector<double*>& to_a,
                      const std::vector<double*>& to_b) {
  double s = 0, aa = 0, bb = 0, dd = 0, l1 = 0;
  for (size_t k = 0; k < a.size(); ++k) {
    const double d = *b[k] - *a[k];
    s += *a[k] * *b[k];
    aa += *a[k] * *a[k];
    bb += *b[k] * *b[k];
    dd += d * d;
    l1 += std::fabs(d);
  }
  const double n = std::sqrt(aa), m = std::sqrt(bb), apart = std::sqrt(dd), length = (double)a.size();
  const bool product = test.form == EpsilonForm::product;
  const double q = product ? n * m + test.epsilon : std::fmax(n, test.epsilon) * std::fmax(m, test.epsilon);
  const double q_n = product ? m : n > test.epsilon ? std::fmax(m, test.epsilon) : 0;
  const double q_m = product ? n : m > test.epsilon ? std::fmax(n, test.epsilon) : 0;
  const bool cosine = test.metric == GradientMetric::row_cosine || test.metric == GradientMetric::cosine ||
                      test.metric == GradientMetric::cosine_l2;
  for (size_t k = 0; k < a.size(); ++k) {
    const double d = *b[k] - *a[k];
    double by_a = 0, by_b = 0;
    if (cosine) {
      by_a = -*b[k] / q + (n > 0 ? s / q / q * q_n * *a[k] / n : 0);
      by_b = -*a[k] / q + (m > 0 ? s / q / q * q_m * *b[k] / m : 0);
    }
    double by_d = 0;
    if (test.metric == GradientMetric::cosine_l2 && apart > 0) by_d = d / apart;
    if (test.metric == GradientMetric::sse) by_d = 2 * d;
    if (test.metric == GradientMetric::l1) by_d = d > 0 ? 1 : d < 0 ? -1 : 0;
    if (test.metric == GradientMetric::l1_mean) by_d = (d > 0 ? 1 : d < 0 ? -1 : 0) / length;
    *to_a[k] = by_a - by_d;
    *to_b[k] = by_b + by_d;
  }
  switch (test.metric) {
    case GradientMetric::sse:
      return dd;
    case GradientMetric::l1:
      return l1;
    case GradientMetric::l1_mean:
      return l1 / length;
    case GradientMetric::cosine_l2:
      return 1 - s / q + apart;
    default:
      return 1 - s / q;
  }
}

inline GradientResult gradients(const GradientCase& test, const std::vector<std::vector<double>>& a,
                                const std::vector<std::vector<double>>& b) {
  GradientResult result;
  result.value.assign((size_t)test.classes, 0);
  result.a = a;
  result.b = b;
  for (int64_t c = 0; c < test.classes; ++c) {
    std::vector<const double*> row_a, row_b;
    std::vector<double*> to_a, to_b;
    const auto finish = [&] {
      result.value[(size_t)c] += add_row(test, row_a, row_b, to_a, to_b);
      row_a.clear(), row_b.clear(), to_a.clear(), to_b.clear();
    };
    for (size_t t = 0; t < test.shapes.size(); ++t) {
      const GradientShape& s = test.shapes[t];
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t o = 0; o < s.outer; ++o)
          for (int64_t i = 0; i < s.inner; ++i) {
            const size_t k = (size_t)(((c * s.outer + o) * s.rows + r) * s.inner + i);
            row_a.push_back(&a[t][k]), row_b.push_back(&b[t][k]);
            to_a.push_back(&result.a[t][k]), to_b.push_back(&result.b[t][k]);
          }
        if (test.metric != GradientMetric::cosine) finish();
      }
    }
    if (test.metric == GradientMetric::cosine) finish();
  }
  return result;
}

// How the gradients move along u and w, by a central difference.
inline GradientResult moved(const GradientCase& test, const GradientData& data) {
  constexpr double step = 1e-6;
  GradientResult ends[2];
  for (int side = 0; side < 2; ++side) {
    auto a = data.a, b = data.b;
    for (size_t t = 0; t < a.size(); ++t)
      for (size_t k = 0; k < a[t].size(); ++k) {
        const double by = side ? step : -step;
        a[t][k] += by * data.u[t][k];
        b[t][k] += by * data.w[t][k];
      }
    ends[side] = gradients(test, a, b);
  }
  for (auto part : {&GradientResult::a, &GradientResult::b})
    for (size_t t = 0; t < data.a.size(); ++t)
      for (size_t k = 0; k < data.a[t].size(); ++k)
        (ends[1].*part)[t][k] = ((ends[1].*part)[t][k] - (ends[0].*part)[t][k]) / (2 * step);
  return ends[1];
}

inline std::vector<char> as_type(const std::vector<double>& numbers, DType dtype) {
  const size_t size = dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
  std::vector<char> bytes(numbers.size() * size);
  for (size_t k = 0; k < numbers.size(); ++k) {
    const float single = (float)numbers[k];
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    uint16_t half = (uint16_t)(bits >> 16);
    if (dtype == DType::float16)  // of numbers that are 0 or from 2^-7 to 2
      half = single == 0 ? 0 : (uint16_t)((bits >> 16 & 0x8000) | ((bits & 0x7fffffff) - (112u << 23)) >> 13);
    const void* from = size == 8 ? (const void*)&numbers[k] : size == 4 ? (const void*)&single : &half;
    std::memcpy(bytes.data() + k * size, from, size);
  }
  return bytes;
}

template <class T>
struct GradientOutputs {
  std::vector<T> value, a, b;

  bool same_bits(const GradientOutputs& o) const {
    const auto same = [](const std::vector<T>& p, const std::vector<T>& q) {
      return p.size() == q.size() && (p.empty() || !std::memcmp(p.data(), q.data(), p.size() * sizeof(T)));
    };
    return same(value, o.value) && same(a, o.a) && same(b, o.b);
  }
};

// Memory that ends where it was asked to end, so that a sanitizer sees a number too many.
template <class T>
GradientOutputs<T> run_gradients(const GradientCase& test, const GradientData& data, int need, bool second,
                                 int threads) {
  const GradientLayout layout =
      gradient_layout(test.metric, test.form, test.epsilon, test.dtype, test.classes, test.shapes);
  std::vector<std::vector<char>> typed;
  std::vector<const void*> lists[2];
  std::vector<T> tangents[2];
  for (const auto* list : {&data.a, &data.b})
    for (const auto& numbers : *list) typed.push_back(as_type(numbers, test.dtype));
  for (size_t t = 0; t < typed.size(); ++t) lists[t / test.shapes.size()].push_back(typed[t].data());
  for (size_t t = 0; t < test.shapes.size(); ++t) {
    tangents[0].insert(tangents[0].end(), data.u[t].begin(), data.u[t].end());
    tangents[1].insert(tangents[1].end(), data.w[t].begin(), data.w[t].end());
  }
  const size_t flat = tangents[0].size();
  GradientOutputs<T> out;
  out.value.assign(second ? 0 : (size_t)test.classes, (T)NAN);
  out.a.assign(need & 1 ? flat : 0, (T)NAN);
  out.b.assign(need & 2 ? flat : 0, (T)NAN);
  std::vector<double> workspace((size_t)layout.workspace_bytes() / 8, NAN);
  GradientArguments a{};
  a.layout = &layout;
  a.parts = layout.parts.data();
  a.part_count = (int64_t)layout.parts.size();
  a.real = lists[0].data();
  a.synthetic = lists[1].data();
  a.value = second ? nullptr : out.value.data();
  a.tangent_real = second ? tangents[0].data() : nullptr;
  a.tangent_synthetic = second ? tangents[1].data() : nullptr;
  a.out_real = need & 1 ? out.a.data() : nullptr;
  a.out_synthetic = need & 2 ? out.b.data() : nullptr;
  Execution execution;
  execution.workspace = workspace.data();
  execution.workspace_bytes = layout.workspace_bytes();
  execution.threads = threads;
  gradient_distance(a, execution);
  return out;
}

template <class T>
double furthest(const std::vector<T>& ours, const std::vector<std::vector<double>>& theirs, double* most) {
  double worst = 0;
  size_t k = 0;
  for (const auto& part : theirs)
    for (const double exact : part) {
      if (k == ours.size()) return worst;  // not wanted
      const double error = std::fabs((double)ours[k++] - exact);
      worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
      *most = std::fmax(*most, std::fabs(exact));
    }
  return worst;
}

// Odd sizes and every way of cutting: rows, rows of stride 1, several runs to a row, numbers alone, and rows
// that are longer than one task takes.
inline std::vector<GradientCase> gradient_cases() {
  const std::vector<GradientShape> mixed = {{1, 7, 27}, {1, 1, 1},  {5, 37, 1},
                                            {3, 4, 5},  {1, 33, 1}, {1, 3, 1153}};
  const std::vector<std::pair<const char*, GradientMetric>> metrics = {
      {"row_cosine", GradientMetric::row_cosine},
      {"cosine", GradientMetric::cosine},
      {"cosine_l2", GradientMetric::cosine_l2},
      {"sse", GradientMetric::sse},
      {"l1", GradientMetric::l1},
      {"l1_mean", GradientMetric::l1_mean}};
  std::vector<GradientCase> cases;
  for (const auto& [name, metric] : metrics)
    for (const DType dtype : {DType::float64, DType::float32, DType::float16, DType::bfloat16})
      cases.push_back({name, metric, mixed, 2, dtype});
  for (const DType dtype : {DType::float64, DType::float32}) {
    cases.push_back({"clamp", GradientMetric::row_cosine, mixed, 1, dtype, EpsilonForm::clamp, 5});
    cases.push_back({"long", GradientMetric::cosine_l2, {{1, 2, 66001}, {1, 2, 3}}, 2, dtype});
    cases.push_back(
        {"wide", GradientMetric::row_cosine, {{300, 301, 1}, {1, 5, 1025}, {1, 2, 9001}}, 1, dtype});
  }
  GradientCase many{"many", GradientMetric::row_cosine, {}, 3, DType::float32};
  for (int64_t t = 0; t < 131; ++t) many.shapes.push_back({1, 2 + t % 3, 3 + t % 7});
  cases.push_back(many);
  many.metric = GradientMetric::cosine;
  cases.push_back(many);
  return cases;
}

inline std::string full_name(const GradientCase& test) {
  const char* const types[] = {"float64", "float32", "float16", "bfloat16"};
  const int type = test.dtype == DType::float64   ? 0
                   : test.dtype == DType::float32 ? 1
                   : test.dtype == DType::float16 ? 2
                                                  : 3;
  return "gradients " + test.name + " " + types[type];
}

// check(good, name, error, allowed); repeat(name, run) gives what run() returns.
template <class T, class Check, class Repeat>
void test_gradients(const GradientCase& test, const Check& check, const Repeat& repeat) {
  const GradientData data(test);
  const GradientResult first = gradients(test, data.a, data.b), second = moved(test, data);
  const double eps = sizeof(T) == 8 ? 1e-14 : 4e-7;
  for (const int need : {0, 1, 2, 3})
    for (const bool moves : {false, true}) {
      const std::string name =
          full_name(test) + (moves ? " second" : " first") + " need " + std::to_string(need);
      const GradientOutputs<T> ours =
          repeat(name, [&](int threads) { return run_gradients<T>(test, data, need, moves, threads); });
      const GradientResult& exact = moves ? second : first;
      double most = 0;
      const double worst = std::fmax(furthest(ours.a, exact.a, &most), furthest(ours.b, exact.b, &most));
      // What the differences and coefficients are made of is a few times as large as they are.
      const double allowed = (moves ? 3e-8 : 0) + 50 * eps * most;
      check(worst <= allowed, name, worst, allowed);
      double rows = 0;
      for (const GradientShape& s : test.shapes) rows += (double)s.rows;
      for (size_t c = 0; c < ours.value.size(); ++c) {
        const double error = std::fabs((double)ours.value[c] - exact.value[c]);
        const double bound = 4 * eps * (rows + std::fabs(exact.value[c]));
        check(error <= bound, name + " value", error, bound);
      }
    }
}

}  // namespace reference
