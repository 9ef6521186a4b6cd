// Problems for kernels_test: rows of any type and layout in heap memory that ends where they end, outputs and
// scratch that start as NaN, and the calls of the interface on them.
#pragma once
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <string>

#include "../native/reference.h"

namespace cases {

using namespace decoct;

// Heap memory of 0xff: NaN as any floating-point number. It starts `shift` bytes behind a multiple of 256.
class Memory {
 public:
  explicit Memory(int64_t bytes, int64_t shift = 0) : shift_(shift) {
    if (posix_memalign(&base_, 256, (size_t)(bytes + shift))) throw std::bad_alloc();
    if (base_) std::memset(base_, 0xff, (size_t)(bytes + shift));
  }
  ~Memory() { std::free(base_); }
  Memory(const Memory&) = delete;
  char* data() const { return (char*)base_ + shift_; }

 private:
  void* base_ = nullptr;
  int64_t shift_;
};

// packed: no space between rows. padded: rows start at multiples of four elements, whole quads lie behind
// them. shifted: the same one element later. odd: rows start anywhere.
enum class Layout { packed, padded, shifted, odd };
// Copies of other rows, exact ones or also ones that are a little off.
enum class Near { none, copies, close };

struct Shape {
  std::vector<int> x, y;  // rows of each segment
  int dim;
};

struct Setup {
  Shape shape;
  DType rows = DType::float32;
  Near near = Near::none;
  Layout layout = Layout::packed;
  bool weighted = true, from_data = false;
  bool potentials = false;
  double lift = 0;  // of the potentials of x, and off those of y
  double size = 1;  // of all coordinates and the bandwidth
};

inline int element_bytes(DType type) {
  return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2;
}

inline float cut_to_bfloat16(double value) {
  const float drawn = (float)value;
  uint32_t bits;
  std::memcpy(&bits, &drawn, 4);
  bits &= 0xffff0000u;
  float kept;
  std::memcpy(&kept, &bits, 4);
  return kept;
}

// A number near `value` that the type has. Of float16 multiples of 2^-8 below 8.
inline double stored(DType type, double value) {
  switch (type) {
    case DType::float64:
      return value;
    case DType::float16:
      return std::fmin(std::fmax(std::round(value * 256) / 256, -7.0), 7.0);
    case DType::bfloat16:
      return cut_to_bfloat16(value);
    default:
      return (float)value;
  }
}

inline uint16_t to_half(double value) {
  if (value == 0) return 0;
  if (!std::isfinite(value)) return 0x7c00;
  int exponent;
  const double mantissa = std::frexp(std::fabs(value), &exponent);
  return (uint16_t)((value < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | (int)((2 * mantissa - 1) * 1024));
}

inline void store(DType type, void* memory, int64_t at, double value) {
  const float single = (float)value;
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  if (type == DType::float64) ((double*)memory)[at] = value;
  if (type == DType::float32) ((float*)memory)[at] = single;
  if (type == DType::float16) ((uint16_t*)memory)[at] = to_half(value);
  if (type == DType::bfloat16) ((uint16_t*)memory)[at] = (uint16_t)(bits >> 16);
}

// Rows of the caller.
class Cloud {
 public:
  Cloud(DType type, int64_t rows, int64_t columns, Layout layout)
      : matrix_{nullptr, rows, columns, stride_of(columns, layout), type},
        memory_((rows ? (rows - 1) * matrix_.stride + columns : 0) * element_bytes(type),
                layout == Layout::shifted ? element_bytes(type) : 0) {
    matrix_.data = memory_.data();
  }
  void set(int64_t row, int64_t column, double value) {
    store(matrix_.dtype, matrix_.data, row * matrix_.stride + column, value);
  }
  const Matrix& matrix() const { return matrix_; }

 private:
  static int64_t stride_of(int64_t columns, Layout layout) {
    if (layout == Layout::packed) return columns;
    return layout == Layout::odd ? columns + 3 : (columns + 3) / 4 * 4 + 4;
  }
  Matrix matrix_;
  Memory memory_;
};

template <class T>
constexpr DType dtype_of = sizeof(T) == 8 ? DType::float64 : DType::float32;

// Outputs, all NaN; `spare` elements that nothing may touch lie between the rows.
template <class T>
struct Grid {
  int64_t rows = 0, columns = 0, stride = 0;
  std::vector<T> data;

  Grid() = default;
  Grid(int64_t r, int64_t c, int64_t spare = 0)
      : rows(r), columns(c), stride(c + spare), data((size_t)(r ? (r - 1) * stride + c : 0), (T)NAN) {}
  Matrix matrix() { return {data.empty() ? nullptr : data.data(), rows, columns, stride, dtype_of<T>}; }
  T at(int64_t row, int64_t column) const { return data[(size_t)(row * stride + column)]; }
  bool same_bits(const Grid& o) const {
    return data.size() == o.data.size() &&
           (data.empty() || !std::memcmp(data.data(), o.data.data(), data.size() * sizeof(T)));
  }
  bool spare_untouched() const {
    bool good = true;
    for (size_t e = 0; e < data.size(); ++e)
      good &= (int64_t)e % stride < columns || std::isnan((double)data[e]);
    return good;
  }
};

// Draws rows x, then y; y lies a little off.
inline void draw_rows(reference::Segment& s, const Setup& setup, std::mt19937& random) {
  std::normal_distribution<double> normal;
  const int rows = s.n + s.m;
  s.z.resize((size_t)rows * s.dim);
  for (int i = 0; i < rows; ++i) {
    const int j = i - s.n;
    const bool on_x = j < 0, copied = setup.near != Near::none && (on_x ? i % 5 == 4 : s.n > 0 && j % 3 == 0);
    const bool off = setup.near == Near::close && (on_x ? i % 10 == 9 : j % 6 == 3);
    const int from = on_x ? i - 1 : s.n ? 7 * j % s.n : 0;
    for (int d = 0; d < s.dim; ++d) {
      double value = normal(random) + (on_x ? 0 : 0.3);
      if (copied) value = s.z[from * s.dim + d] / setup.size + (off ? 0.02 * value : 0);
      s.z[i * s.dim + d] = stored(setup.rows, setup.size * value);
    }
  }
}

template <class T>
struct Problem {
  Setup setup;
  std::vector<int64_t> x_offsets{0}, y_offsets{0};
  std::vector<reference::Segment> segments;
  std::vector<T> a, b, f, g;
  Cloud x, y;

  explicit Problem(const Setup& s, unsigned seed = 7)
      : setup(s),
        x(s.rows, count_rows(s.shape.x, x_offsets), s.shape.dim, s.layout),
        y(s.rows, count_rows(s.shape.y, y_offsets), s.shape.dim, s.layout) {
    std::mt19937 random(seed);
    a.reserve(x_offsets.back());
    b.reserve(y_offsets.back());
    for (size_t c = 0; c < s.shape.x.size(); ++c) add_segment(c, random);
  }

  double length() const { return setup.size * (0.5 + 0.8 * std::sqrt(setup.shape.dim)); }
  // What the kernels take for the bandwidth.
  double bandwidth(const reference::Segment& s) const {
    if (!setup.from_data || s.n + s.m < 2) return length();
    return std::sqrt(std::fmax(std::pow(reference::mean_bandwidth(s), 2), 0.5e-10));
  }
  int64_t count() const { return (int64_t)segments.size(); }

  Clouds clouds(const Kernel& kernel, double* bandwidth) {
    Clouds c = reference::clouds_of(x.matrix(), y.matrix(), x_offsets, y_offsets, kernel, bandwidth);
    if (setup.weighted) {
      c.a = {a.data(), (int64_t)a.size(), 1, 1, dtype_of<T>};
      c.b = {b.data(), (int64_t)b.size(), 1, 1, dtype_of<T>};
    }
    if (setup.potentials) {
      c.f = {f.data(), (int64_t)f.size(), 1, 1, dtype_of<T>};
      c.g = {g.data(), (int64_t)g.size(), 1, 1, dtype_of<T>};
    }
    return c;
  }

  Sizes sizes(Op op, int need, int terms) {
    return sizes_of(op, clouds(Kernel{}, nullptr), 1, need, terms, 1);
  }

 private:
  static int64_t count_rows(const std::vector<int>& rows, std::vector<int64_t>& offsets) {
    for (const int n : rows) offsets.push_back(offsets.back() + n);
    return offsets.back();
  }

  void add_segment(size_t c, std::mt19937& random) {
    reference::Segment s;
    s.n = setup.shape.x[c];
    s.m = setup.shape.y[c];
    s.dim = setup.shape.dim;
    draw_rows(s, setup, random);
    for (int i = 0; i < s.n + s.m; ++i) {
      const bool on_x = i < s.n;
      const int own = on_x ? i : i - s.n, rows = on_x ? s.n : s.m;
      Cloud& cloud = on_x ? x : y;
      for (int d = 0; d < s.dim; ++d)
        cloud.set((on_x ? x_offsets : y_offsets)[c] + own, d, s.z[i * s.dim + d]);
      const T weight = setup.weighted ? (T)((0.5 + 0.25 * (own % 5)) / rows) : (T)(1.0 / rows);
      (on_x ? a : b).push_back(weight);
      s.w.push_back(setup.weighted ? (double)weight : 1.0 / rows);
      const T potential = (T)(0.25 * (own % 7) - (on_x ? 1 - setup.lift : 0.5 + setup.lift));
      (on_x ? f : g).push_back(potential);
      if (setup.potentials) s.potentials.push_back((double)potential);
    }
    segments.push_back(s);
  }
};

template <class T>
struct Results {
  std::vector<double> value, bandwidth;
  Grid<T> x, y, a, b;

  Results(const Problem<T>& p, int need)
      : value(p.segments.size(), NAN), bandwidth(p.segments.size(), p.length()) {
    const int64_t n = p.x_offsets.back(), m = p.y_offsets.back(), dim = p.setup.shape.dim;
    const int64_t spare = p.setup.layout == Layout::packed ? 0 : 3;
    if (need & kNeedX) x = Grid<T>(n, dim, spare);
    if (need & kNeedY) y = Grid<T>(m, dim, spare);
    if (need & kNeedA) a = Grid<T>(n, 1);
    if (need & kNeedB) b = Grid<T>(m, 1);
  }
  bool same_bits(const Results& o) const {
    const auto same = [](const std::vector<double>& p, const std::vector<double>& q) {
      return p.empty() || !std::memcmp(p.data(), q.data(), p.size() * sizeof p[0]);
    };
    return same(value, o.value) && same(bandwidth, o.bandwidth) && x.same_bits(o.x) && y.same_bits(o.y) &&
           a.same_bits(o.a) && b.same_bits(o.b);
  }
  bool spare_untouched() const { return x.spare_untouched() && y.spare_untouched(); }
};

// Runs a call with a schedule and scratch that are not one byte longer than asked for.
template <class Call>
void execute(const Plan& layout, Precision precision, const Call& call) {
  const std::vector<int32_t> host(layout.schedule), device(layout.schedule);
  const Memory workspace(layout.workspace_bytes);
  Execution e;
  e.schedule = host.data();
  e.device_schedule = device.data();
  e.workspace = workspace.data();
  e.workspace_bytes = layout.workspace_bytes;
  e.precision = precision;
  call(e);
}

// Lays it out first.
template <class Call>
void execute(const Sizes& sizes, Precision precision, const Call& call) {
  const Plan layout = plan(sizes);
  if (workspace_bytes(sizes, layout.schedule.data(), (int64_t)layout.schedule.size()) !=
      layout.workspace_bytes)
    throw std::runtime_error("plan and workspace_bytes differ");
  execute(layout, precision, call);
}

struct Case {
  std::string name;
  Kernel kernel;
  double c[3];
};

inline int terms_of(const double* c) {
  return (c[0] ? kTermXX : 0) | (c[1] ? kTermXY : 0) | (c[2] ? kTermYY : 0);
}

inline std::vector<double> repeated(const double* c, int64_t segments) {
  std::vector<double> all((size_t)(3 * segments));
  for (size_t e = 0; e < all.size(); ++e) all[e] = c[e % 3];
  return all;
}

template <class T>
Results<T> run_sums(Problem<T>& p, const Case& test, int need, Precision precision) {
  Results<T> out(p, need);
  const std::vector<double> coefficients = repeated(test.c, p.count());
  SumsArguments s{};
  s.clouds = p.clouds(test.kernel, out.bandwidth.data());
  s.coefficients = coefficients.data();
  s.bandwidth_from_data = p.setup.from_data;
  s.need = need;
  s.value = out.value.data();
  s.grad_x = out.x.matrix();
  s.grad_y = out.y.matrix();
  s.grad_a = out.a.matrix();
  s.grad_b = out.b.matrix();
  execute(p.sizes(Op::sums, need, terms_of(test.c)), precision,
          [&](const Execution& e) { kernel_sums(s, e); });
  return out;
}

// Tangents of x, y, a, b; one without rows is not given.
template <class T>
using Tangents = Grid<T>[4];

template <class T>
Results<T> run_hvp(Problem<T>& p, const Case& test, int need, Precision precision, Tangents<T>& tangents) {
  Results<T> out(p, need);
  const std::vector<double> coefficients = repeated(test.c, p.count());
  HvpArguments h{};
  h.clouds = p.clouds(test.kernel, out.bandwidth.data());
  h.coefficients = coefficients.data();
  h.need = need;
  h.tangent_x = tangents[0].matrix();
  h.tangent_y = tangents[1].matrix();
  h.tangent_a = tangents[2].matrix();
  h.tangent_b = tangents[3].matrix();
  h.out_x = out.x.matrix();
  h.out_y = out.y.matrix();
  h.out_a = out.a.matrix();
  h.out_b = out.b.matrix();
  execute(p.sizes(Op::hvp, need, terms_of(test.c)), precision,
          [&](const Execution& e) { kernel_sums_hvp(h, e); });
  return out;
}

}  // namespace cases
