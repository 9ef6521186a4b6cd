// What the native tests share: rows of segments as the engine takes them, scratch that starts as NaN and has
// no spare byte, and the count of what passed.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "reference.h"

using namespace decoct;

inline int passed = 0, failed = 0;

inline void check(bool good, const std::string& what, double error = 0, double allowed = 0) {
  ++(good ? passed : failed);
  if (!good) std::printf("FAILED %s: error %.3g, allowed %.3g\n", what.c_str(), error, allowed);
}

struct Workspace {
  void* data = nullptr;
  explicit Workspace(int64_t bytes) {
    if (posix_memalign(&data, 64, bytes ? bytes : 64)) std::abort();
    std::memset(data, 0xff, bytes);
  }
  ~Workspace() { std::free(data); }
  Workspace(const Workspace&) = delete;
};

template <class T>
constexpr DType dtype_of = sizeof(T) == 8 ? DType::float64 : DType::float32;

template <class T>
std::vector<T> unwritten(size_t count) {
  return std::vector<T>(count, (T)NAN);
}

template <class T>
Matrix matrix(std::vector<T>& data, int64_t rows, int64_t columns) {
  return {data.empty() ? nullptr : data.data(), rows, columns, columns, dtype_of<T>};
}

struct Shape {
  std::vector<int> x, y;  // rows of each segment
  int dim;
};

// Rows and weights of all segments, as the engine takes them (T, or bfloat16 rows) and as the reference does.
template <class T>
struct Problem {
  Shape shape;
  bool bfloat;
  std::vector<int64_t> x_offsets{0}, y_offsets{0};
  std::vector<T> x, y, a, b, f, g;
  std::vector<uint16_t> x_half, y_half;
  std::vector<reference::Segment> segments;
  int stride;

  Problem(const Shape& s, bool half, unsigned seed, bool plan = false)
      : shape(s), bfloat(half), stride(s.dim + 3) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (size_t c = 0; c < s.x.size(); ++c) {
      reference::Segment segment;
      segment.n = s.x[c];
      segment.m = s.y[c];
      segment.dim = s.dim;
      for (const bool on_x : {true, false}) {
        const int rows = on_x ? segment.n : segment.m;
        std::vector<T>&points = on_x ? x : y, &weights = on_x ? a : b;
        std::vector<uint16_t>& halves = on_x ? x_half : y_half;
        for (int i = 0; i < rows; ++i) {
          for (int d = 0; d < stride; ++d) {
            const float drawn = (float)(normal(random) + (on_x ? 0 : 0.3));
            uint32_t bits;
            std::memcpy(&bits, &drawn, 4);
            halves.push_back((uint16_t)(bits >> 16));
            bits &= bfloat ? 0xffff0000u : 0xffffffffu;
            float kept;
            std::memcpy(&kept, &bits, 4);
            // What lies between the rows must not be read as part of them.
            points.push_back(d < s.dim ? (T)kept : (T)NAN);
            if (d < s.dim) segment.z.push_back(kept);
          }
          weights.push_back((T)((0.5 + 0.25 * (i % 5)) / rows));
          segment.w.push_back(weights.back());
          if (!plan) continue;
          (on_x ? f : g).push_back((T)(0.25 * (i % 7 - 3)));
          segment.potentials.push_back(0.25 * (i % 7 - 3));
        }
      }
      segments.push_back(segment);
      x_offsets.push_back(x_offsets.back() + segment.n);
      y_offsets.push_back(y_offsets.back() + segment.m);
    }
  }

  double length() const { return 0.5 + 0.8 * std::sqrt(shape.dim); }
  int64_t count() const { return (int64_t)segments.size(); }
  DType row_type() const { return bfloat ? DType::bfloat16 : dtype_of<T>; }

  Clouds clouds(const Kernel& kernel, double* bandwidth) {
    const auto rows = [&](void* data, const std::vector<int64_t>& offsets) {
      return Matrix{data, offsets.back(), shape.dim, stride, row_type()};
    };
    Clouds c = reference::clouds_of(rows(bfloat ? (void*)x_half.data() : x.data(), x_offsets),
                                    rows(bfloat ? (void*)y_half.data() : y.data(), y_offsets), x_offsets,
                                    y_offsets, kernel, bandwidth);
    c.a = matrix(a, x_offsets.back(), 1);
    c.b = matrix(b, y_offsets.back(), 1);
    if (!f.empty()) {
      c.f = matrix(f, x_offsets.back(), 1);
      c.g = matrix(g, y_offsets.back(), 1);
    }
    return c;
  }

  Sizes sizes(Op op, int need, int terms, int threads) {
    return sizes_of(op, clouds(Kernel{}, nullptr), 1, need, terms, threads);
  }
};

// Runs a call that is laid out and hands it scratch that is not one byte larger than asked for.
template <class Call>
void execute(const Plan& layout, int threads, const Call& call) {
  Workspace workspace(layout.workspace_bytes);
  Execution e;
  e.schedule = layout.schedule.data();
  e.workspace = workspace.data;
  e.workspace_bytes = layout.workspace_bytes;
  e.threads = threads;
  call(e);
}

// Lays it out first.
template <class Call>
void execute(const Sizes& sizes, const Call& call) {
  execute(plan(sizes), sizes.threads, call);
}

// Largest difference of rows [first, first + rows) of ours and rows [begin, ...) of theirs; NaN counts as
// infinite.
template <class T>
double difference(const std::vector<T>& ours, const std::vector<double>& theirs, int64_t first, int64_t begin,
                  int64_t rows, int64_t columns) {
  double worst = 0;
  for (int64_t e = 0; e < rows * columns; ++e) {
    const double error = std::fabs((double)ours[first * columns + e] - theirs[begin * columns + e]);
    worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
  }
  return worst;
}
