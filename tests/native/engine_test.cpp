// The engine without Python, for the sanitizers: values, gradients and Hessian products against naive double
// sums, and bitwise the same results with 1, 2 and 3 threads.
#include <algorithm>
#include <stdexcept>

#include "problem.h"

void test_norm();
void test_gradient_distance();
void test_transport();
void test_layers();
void test_characteristic();
void test_projections();
void test_barycenter();
void test_samples();

namespace {

template <class T>
struct Outputs {
  std::vector<double> value, bandwidth;
  std::vector<T> x, y, a, b;

  template <class P>
  Outputs(const P& p, int need)
      : value(unwritten<double>(p.segments.size())),
        bandwidth(p.segments.size(), p.length()),
        x(unwritten<T>(need & kNeedX ? p.x_offsets.back() * p.shape.dim : 0)),
        y(unwritten<T>(need & kNeedY ? p.y_offsets.back() * p.shape.dim : 0)),
        a(unwritten<T>(need & kNeedA ? p.x_offsets.back() : 0)),
        b(unwritten<T>(need & kNeedB ? p.y_offsets.back() : 0)) {}

  bool same_bits(const Outputs& o) const {
    const auto same = [](const auto& p, const auto& q) {
      return p.size() == q.size() && (p.empty() || !std::memcmp(p.data(), q.data(), p.size() * sizeof p[0]));
    };
    return same(value, o.value) && same(bandwidth, o.bandwidth) && same(x, o.x) && same(y, o.y) &&
           same(a, o.a) && same(b, o.b);
  }
};

struct Case {
  std::string name;
  Kernel kernel;
  double c[3];
  bool plan = false;  // with potentials
};

int terms_of(const double* c) {
  return (c[0] ? kTermXX : 0) | (c[1] ? kTermXY : 0) | (c[2] ? kTermYY : 0);
}

std::vector<double> repeated(const double* c, int64_t segments) {
  std::vector<double> all;
  for (int64_t s = 0; s < segments; ++s) all.insert(all.end(), c, c + 3);
  return all;
}

template <class T>
Outputs<T> run_sums(Problem<T>& p, const Case& test, int need, int threads, bool from_data) {
  Outputs<T> out(p, need);
  const std::vector<double> coefficients = repeated(test.c, p.count());
  SumsArguments s{};
  s.clouds = p.clouds(test.kernel, out.bandwidth.data());
  s.coefficients = coefficients.data();
  s.bandwidth_from_data = from_data;
  s.need = need;
  s.value = out.value.data();
  s.grad_x = matrix(out.x, p.x_offsets.back(), p.shape.dim);
  s.grad_y = matrix(out.y, p.y_offsets.back(), p.shape.dim);
  s.grad_a = matrix(out.a, p.x_offsets.back(), 1);
  s.grad_b = matrix(out.b, p.y_offsets.back(), 1);
  execute(p.sizes(Op::sums, need, terms_of(test.c), threads), [&](const Execution& e) { kernel_sums(s, e); });
  return out;
}

template <class T>
Outputs<T> run_hvp(Problem<T>& p, const Case& test, int need, int threads, std::vector<T>* tangents) {
  Outputs<T> out(p, need);
  const std::vector<double> coefficients = repeated(test.c, p.count());
  HvpArguments h{};
  h.clouds = p.clouds(test.kernel, out.bandwidth.data());
  h.coefficients = coefficients.data();
  h.need = need;
  h.tangent_x = matrix(tangents[0], p.x_offsets.back(), p.shape.dim);
  h.tangent_y = matrix(tangents[1], p.y_offsets.back(), p.shape.dim);
  h.tangent_a = matrix(tangents[2], p.x_offsets.back(), 1);
  h.tangent_b = matrix(tangents[3], p.y_offsets.back(), 1);
  h.out_x = matrix(out.x, p.x_offsets.back(), p.shape.dim);
  h.out_y = matrix(out.y, p.y_offsets.back(), p.shape.dim);
  h.out_a = matrix(out.a, p.x_offsets.back(), 1);
  h.out_b = matrix(out.b, p.y_offsets.back(), 1);
  execute(p.sizes(Op::hvp, need, terms_of(test.c), threads),
          [&](const Execution& e) { kernel_sums_hvp(h, e); });
  return out;
}

template <class T>
void compare(const Problem<T>& p, const Outputs<T>& ours, const std::vector<reference::Sums>& exact, int need,
             const std::string& name, double unit, bool with_value) {
  double worst[3] = {0, 0, 0}, allowed[3] = {0, 0, 0};
  for (size_t c = 0; c < exact.size(); ++c) {
    const reference::Sums& e = exact[c];
    const reference::Segment& s = p.segments[c];
    const auto keep = [&](int what, double error, double scale) {
      // Segments differ in size: keep the one that is closest to its bound.
      if (!(error * allowed[what] <= worst[what] * unit * scale) || allowed[what] == 0)
        worst[what] = error, allowed[what] = unit * scale;
    };
    if (with_value) keep(0, difference(ours.value, {e.value}, c, 0, 1, 1), e.magnitude);
    if (need & kNeedX) keep(1, difference(ours.x, e.grad, p.x_offsets[c], 0, s.n, s.dim), e.grad_magnitude);
    if (need & kNeedY) keep(1, difference(ours.y, e.grad, p.y_offsets[c], s.n, s.m, s.dim), e.grad_magnitude);
    if (need & kNeedA)
      keep(2, difference(ours.a, e.grad_weight, p.x_offsets[c], 0, s.n, 1), e.weight_magnitude);
    if (need & kNeedB)
      keep(2, difference(ours.b, e.grad_weight, p.y_offsets[c], s.n, s.m, 1), e.weight_magnitude);
  }
  const char* parts[] = {" value", " rows", " weights"};
  for (int what = 0; what < 3; ++what)
    if (what || with_value)
      check(worst[what] <= allowed[what], name + parts[what], worst[what], allowed[what]);
}

template <class T>
void test_sums(const Shape& shape, const Case& test, bool bfloat, bool from_data, const std::string& name) {
  Problem<T> p(shape, bfloat, 7, test.plan);
  std::vector<reference::Sums> exact;
  for (const auto& s : p.segments)
    exact.push_back(reference::sums(
        s, test.kernel, from_data && s.n && s.m ? reference::mean_bandwidth(s) : p.length(), test.c));
  for (const int need : {0, (int)kNeedY, (int)kNeedX, kNeedX | kNeedY, kNeedY | kNeedB, 15}) {
    const std::string label = name + " need " + std::to_string(need);
    const Outputs<T> one = run_sums(p, test, need, 1, from_data);
    compare(p, one, exact, need, label, sizeof(T) == 8 ? 2e-12 : 5e-5, true);
    for (const int threads : {2, 3})
      check(run_sums(p, test, need, threads, from_data).same_bits(one), label + " threads");
  }
}

template <class T>
void test_hvp(const Shape& shape, const Case& test, const std::string& name) {
  Problem<T> p(shape, false, 11, test.plan);
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  std::vector<T> tangents[4];
  const int64_t sizes[4] = {p.x_offsets.back() * shape.dim, p.y_offsets.back() * shape.dim,
                            p.x_offsets.back(), p.y_offsets.back()};
  for (int side = 0; side < 4; ++side)
    for (int64_t e = 0; e < sizes[side]; ++e) tangents[side].push_back((T)normal(random));
  std::vector<reference::Sums> exact;
  for (size_t c = 0; c < p.segments.size(); ++c) {
    std::vector<double> moves, weight_moves;
    for (const int side : {0, 1}) {
      const std::vector<int64_t>& offsets = side ? p.y_offsets : p.x_offsets;
      for (int64_t e = offsets[c] * shape.dim; e < offsets[c + 1] * shape.dim; ++e)
        moves.push_back(tangents[side][e]);
      for (int64_t e = offsets[c]; e < offsets[c + 1]; ++e) weight_moves.push_back(tangents[side + 2][e]);
    }
    exact.push_back(
        reference::hessian_product(p.segments[c], test.kernel, p.length(), test.c, moves, weight_moves));
    // Tangents of the weights are of size one, the weights of size 1 / rows: the products are larger by that.
    exact.back().grad_magnitude = exact.back().weight_magnitude = 0;
    for (double g : exact.back().grad)
      exact.back().grad_magnitude = std::fmax(exact.back().grad_magnitude, std::fabs(g));
    for (double g : exact.back().grad_weight)
      exact.back().weight_magnitude = std::fmax(exact.back().weight_magnitude, std::fabs(g));
  }
  for (const int need : {(int)kNeedX, (int)kNeedY, 15}) {
    const std::string label = name + " hvp need " + std::to_string(need);
    const Outputs<T> one = run_hvp(p, test, need, 1, tangents);
    compare(p, one, exact, need, label, sizeof(T) == 8 ? 1e-7 : 1e-3, false);
    for (const int threads : {2, 3})
      check(run_hvp(p, test, need, threads, tangents).same_bits(one), label + " threads");
  }
}

template <class T>
void test_matvec(const Shape& shape, const Case& test, int columns, const std::string& name) {
  Problem<T> p(shape, false, 13, test.plan);
  std::mt19937 random(6);
  std::normal_distribution<double> normal;
  std::vector<T> v, first;
  for (int64_t e = 0; e < p.y_offsets.back() * columns; ++e) v.push_back((T)normal(random));
  std::vector<double> bandwidth(p.segments.size(), p.length());
  for (const int threads : {1, 2, 3}) {
    std::vector<T> out = unwritten<T>(p.x_offsets.back() * columns);
    MatvecArguments arguments{p.clouds(test.kernel, bandwidth.data()), matrix(v, p.y_offsets.back(), columns),
                              matrix(out, p.x_offsets.back(), columns)};
    arguments.clouds.a = arguments.clouds.b = Matrix{};
    Sizes sizes = p.sizes(Op::matvec, 0, kTermXY, threads);
    sizes.columns = columns;
    execute(sizes, [&](const Execution& e) { kernel_matvec(arguments, e); });
    if (threads == 1) first = out;
    check(!std::memcmp(out.data(), first.data(), out.size() * sizeof(T)), name + " matvec threads");
  }
  double worst = 0, largest = 0;
  for (size_t c = 0; c < p.segments.size(); ++c) {
    const reference::Segment& s = p.segments[c];
    for (int i = 0; i < s.n; ++i)
      for (int e = 0; e < columns; ++e) {
        double total = 0, size = 0;
        for (int j = 0; j < s.m; ++j) {
          const double r = pair_argument(s, is_radial(test.kernel.profile), i, s.n + j);
          const double part = reference::evaluate(test.kernel, p.length(), r).k * s.factor(i, s.n + j) *
                              v[(p.y_offsets[c] + j) * columns + e];
          total += part;
          size += std::fabs(part);
        }
        const double error = std::fabs(total - (double)first[(p.x_offsets[c] + i) * columns + e]);
        worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
        largest = std::fmax(largest, size);
      }
  }
  const double allowed = (sizeof(T) == 8 ? 2e-12 : 5e-5) * largest;
  check(worst <= allowed, name + " matvec", worst, allowed);
}

void test_segment_sums() {
  Problem<float> p({{0, 5, 1000, 1}, {1, 1, 1, 1}, 19}, false, 3);
  std::vector<double> bandwidth(4, 1.0);
  Clouds clouds = p.clouds(Kernel{}, bandwidth.data());
  for (const bool weighted : {false, true})
    for (const int threads : {1, 2, 3}) {
      std::vector<float> out = unwritten<float>(4 * 19);
      Execution e;
      e.threads = threads;
      Clouds summed = clouds;
      if (!weighted) summed.a = Matrix{};
      segment_sums(summed, matrix(out, 4, 19), e);
      double worst = 0;
      for (int c = 0; c < 4; ++c)
        for (int d = 0; d < 19; ++d) {
          double total = 0;
          const reference::Segment& s = p.segments[c];
          for (int i = 0; i < s.n; ++i) total += (weighted ? s.w[i] : 1.0 / s.n) * s.z[i * 19 + d];
          const double error = std::fabs(total - out[c * 19 + d]);
          worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
        }
      check(worst <= 1e-6, "segment sums", worst, 1e-6);
    }
}

// A row that is not finite makes its own segment NaN and no other, bit for bit.
void test_poison(const Case& test) {
  const Shape shape{{40, 400, 7}, {9, 130, 3}, 21};
  Problem<float> clean(shape, false, 17), spoilt(shape, false, 17);
  spoilt.y[(9 + 5) * spoilt.stride + 4] = INFINITY;
  const Outputs<float> expected = run_sums(clean, test, 15, 2, false),
                       ours = run_sums(spoilt, test, 15, 2, false);
  check(std::isnan(ours.value[1]), test.name + " poisoned value");
  bool others = true, own = true;
  for (int64_t i = 0; i < 447; ++i)
    for (int d = 0; d < 21; ++d) {
      const float got = ours.x[i * 21 + d];
      if (i >= 40 && i < 440)
        own &= std::isnan(got);
      else
        others &= got == expected.x[i * 21 + d];
    }
  check(own && others && ours.value[0] == expected.value[0] && ours.value[2] == expected.value[2],
        test.name + " poison stays in its segment");
}

void test_refusals() {
  const int64_t good[] = {0, 3, 3}, late[] = {1, 3}, falling[] = {0, 3, 2};
  for (const auto& [offsets, segments] : {std::pair{late, 1}, std::pair{falling, 2}}) {
    Sizes sizes;
    sizes.dim = 2;
    sizes.segments = segments;
    sizes.x_offsets = offsets;
    sizes.y_offsets = good;
    bool refused = false;
    try {
      plan(sizes);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    check(refused, "plan refuses bad offsets");
  }
}

Kernel kernel(Profile profile, std::vector<double> scales = {1}, double parameter = 0, double offset = 0,
              int degree = 1) {
  Kernel k;
  k.profile = profile;
  k.parameter = parameter;
  k.offset = offset;
  k.degree = degree;
  k.scales = (int)scales.size();
  for (size_t l = 0; l < scales.size(); ++l) k.scale[l] = scales[l];
  return k;
}

}  // namespace

// engine_test [KERNEL...]: the kernels to test by name, all by default.
int main(int count, char** names) {
  const Case cases[] = {
      {"gaussian", kernel(Profile::gaussian), {1, -2, 1}},
      {"gaussian-5", kernel(Profile::gaussian, {0.25, 0.5, 1, 2, 4}), {0, -2, 1}},
      {"laplacian", kernel(Profile::laplacian), {1, -2, 1}},
      {"gaussian-plan", kernel(Profile::gaussian), {1, -2, 1}, true},
      {"laplacian-plan", kernel(Profile::laplacian), {0, -2, 1}, true},
      {"laplacian-2", kernel(Profile::laplacian, {1, 3}), {0, 1, 0}},
      {"energy", kernel(Profile::energy), {1, -2, 1}},
      {"inverse-multiquadric", kernel(Profile::inverse_multiquadric, {1, 2}), {1, -2, 1}},
      {"rational-quadratic", kernel(Profile::rational_quadratic, {1}, 1), {0, -2, 1}},
      {"rational-quadratic-0.7", kernel(Profile::rational_quadratic, {1, 2}, 0.7), {1, -2, 1}},
      {"polynomial", kernel(Profile::polynomial, {1}, 0.2, 1, 3), {1, -2, 1}},
      {"linear", kernel(Profile::linear), {1, -2, 1}},
  };
  // Small ragged segments, empty ones among them; several segments in one call's tasks; one that is cut into
  // blocks.
  const Shape ragged{{0, 1, 7, 96, 97, 5, 31, 2}, {3, 1, 33, 40, 0, 2, 32, 1}, 17};
  const Shape narrow{{65, 33}, {31, 97}, 3}, wide{{33, 5}, {10, 7}, 293};
  const Shape split{{3, 577}, {9, 290}, 37}, five{{31, 98}, {9, 33}, 5}, seven{{2, 99}, {1, 98}, 7};
  const Shape streamed{
      {401, 3, 192}, {10, 2, 1}, 9};  // several buffers full of x, where x may pass through one
  std::printf("instruction set: %s\n", isa_name().c_str());
  for (const Case& test : cases) {
    if (count > 1 && std::find(names + 1, names + count, test.name) == names + count) continue;
    const bool length = test.kernel.profile != Profile::energy && is_radial(test.kernel.profile);
    for (const Shape* shape : {&ragged, &narrow, &five, &seven, &wide, &split, &streamed}) {
      const std::string name = test.name + " D=" + std::to_string(shape->dim);
      test_sums<float>(*shape, test, false, length, name + " float");
      if (shape != &wide) test_sums<double>(*shape, test, false, false, name + " double");
      if (shape == &ragged) test_sums<float>(*shape, test, true, false, name + " bfloat16");
      if (shape == &split) continue;
      test_hvp<double>(*shape, test, name + " double");
      test_hvp<float>(*shape, test, name + " float");
      for (const int columns : {1, 5}) test_matvec<float>(*shape, test, columns, name + " float");
    }
    test_hvp<float>({{290}, {131}, 9}, test, test.name + " split");
    test_matvec<double>(split, test, 3, test.name + " double");
    test_poison(test);
  }
  test_segment_sums();
  test_norm();
  test_gradient_distance();
  test_transport();
  test_layers();
  test_characteristic();
  test_projections();
  test_barycenter();
  test_samples();
  test_refusals();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
