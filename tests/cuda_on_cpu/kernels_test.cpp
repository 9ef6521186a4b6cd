// Every CUDA kernel on the CPU, for the sanitizers: results against naive double sums, and bitwise the same
// in every order of threads and blocks. run.sh builds it and says which kernels no case launched.
//
//   kernels_test [--quick] [--only TEXT] [--launched FILE] [GROUP...]
//
// --quick: each kernel on few shapes. --only: cases with TEXT in their name. --launched: where to add the
// launched kernels, as offsets from note_launch. Groups: those of kGroups, all by default.
#include <algorithm>
#include <fstream>
#include <set>
#include <stdexcept>

#include "characteristic_checks.h"
#include "gradient_checks.h"
#include "layer_checks.h"
#include "projection_checks.h"
#include "sample_checks.h"
#include "transport_checks.h"

using namespace cases;

namespace {

constexpr int kX = kNeedX, kY = kNeedY, kB = kNeedB, kAll = 15;
constexpr Precision kPrecisions[] = {Precision::highest, Precision::high, Precision::medium};

Case make_case(const char* name, Profile profile, std::vector<double> scales, std::vector<double> c,
               double parameter = 0, int degree = 1) {
  Case test{name, Kernel{}, {c[0], c[1], c[2]}};
  test.kernel.profile = profile;
  test.kernel.parameter = parameter;
  test.kernel.offset = 1;
  test.kernel.degree = degree;
  test.kernel.scales = (int)scales.size();
  for (size_t l = 0; l < scales.size(); ++l) test.kernel.scale[l] = scales[l];
  return test;
}

const Case kGaussian = make_case("gaussian", Profile::gaussian, {1}, {1, -2, 1});
const Case kGaussian5 = make_case("gaussian-5", Profile::gaussian, {0.25, 0.5, 1, 2, 4}, {0, -2, 1});
const Case kLaplacian = make_case("laplacian", Profile::laplacian, {1, 3}, {1, -2, 1});
const Case kEnergy = make_case("energy", Profile::energy, {1}, {1, -2, 1});
const Case kPolynomial = make_case("polynomial", Profile::polynomial, {1}, {1, -2, 1}, 0.2, 3);
const Case kLinear = make_case("linear", Profile::linear, {1}, {1, -2, 1});
const Case kPlan = make_case("laplacian-1", Profile::laplacian, {1}, {1, -2, 1});
const Case kCross = make_case("cross", Profile::inverse_multiquadric, {1, 2}, {0, 1, 0});

std::vector<Case> all_cases() {
  return {kGaussian,
          kGaussian5,
          kLaplacian,
          kEnergy,
          kCross,
          make_case("rational-quadratic", Profile::rational_quadratic, {1}, {0.5, -1, 0}, 1),
          make_case("rational-quadratic-0.7", Profile::rational_quadratic, {1, 2}, {1, -2, 1}, 0.7),
          kPolynomial,
          kLinear};
}

// Empty segments, one row, one less and one more than tiles and warps are long; a segment cut into several
// tasks along its columns.
Shape ragged(int dim) {
  return {{0, 1, 31, 65, 33}, {3, 1, 33, 64, 0}, dim};
}
Shape tiles(int dim) {
  return {{63, 128, 2}, {127, 1, 129}, dim};
}
Shape few(int dim) {
  return {{1, 33}, {3, 65}, dim};
}
Shape narrow(int dim) {
  return {{5, 3, 0}, {10, 16, 2}, dim};
}
// Where rows are copied: two that are the centre of their segment, so that their norm is 0.
Shape alike(int dim) {
  return {{1}, {1}, dim};
}
Shape split(int dim) {
  return {{18}, {300}, dim};
}

Setup near_setup(const Shape& shape, DType rows = DType::float32, Layout layout = Layout::packed,
                 Near near = Near::close) {
  Setup s;
  s.shape = shape;
  s.rows = rows;
  s.layout = layout;
  s.near = near;
  return s;
}

Setup plan_setup(const Shape& shape, DType rows = DType::float32, Near near = Near::close) {
  Setup s;
  s.shape = shape;
  s.rows = rows;
  s.near = near;
  s.potentials = true;
  return s;
}

Setup far_setup(const Shape& shape, DType rows = DType::float32) {
  return near_setup(shape, rows, Layout::packed, Near::none);
}

// The same call on rows of every type and layout, of a size whose squares overflow, and for other ends.
void test_rows_of_callers(const std::string& group, const std::vector<int>& dims) {
  for (const int dim : dims) {
    for (const Layout layout : {Layout::packed, Layout::padded, Layout::shifted, Layout::odd})
      for (const DType rows : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
        const Setup setup = near_setup(few(dim), rows, layout);
        const std::string name = group + " rows " + std::to_string((int)rows) + std::to_string((int)layout);
        if (rows == DType::float64)
          test_sums<double>(name, setup, kGaussian, {kAll});
        else
          test_sums<float>(name, setup, kGaussian, {kAll});
      }
    for (const Case& test : {kGaussian, kEnergy, kLinear}) {
      Setup setup = far_setup(few(dim));
      setup.weighted = false;
      setup.from_data = is_radial(test.kernel.profile);
      test_sums<float>(group + " uniform", setup, test, {0, kAll});
      if (!is_radial(test.kernel.profile)) continue;
      setup.size = 0x1p40;
      test_sums<float>(group + " large", setup, test, {kAll});
      setup.size = 0x1p-40;
      setup.from_data = false;
      test_sums<float>(group + " tiny", setup, test, {kAll});
    }
  }
}

// A row that is not finite makes its own segment NaN and no other, bit for bit.
void test_poison(const std::string& group, int dim) {
  const std::string name = group + " poison D=" + std::to_string(dim);
  if (!selected(name)) return;
  Problem<float> clean(far_setup(few(dim))), spoilt(far_setup(few(dim)));
  spoilt.y.set(3 + 40, dim - 1, INFINITY);
  const Results<float> expected = run_sums(clean, kGaussian, kAll, Precision::highest),
                       ours = run_sums(spoilt, kGaussian, kAll, Precision::highest);
  bool own = std::isnan(ours.value[1]), others = ours.value[0] == expected.value[0];
  for (int64_t i = 0; i < 34; ++i)
    for (int d = 0; d < dim; ++d) {
      own &= i == 0 || std::isnan(ours.x.at(i, d));
      others &= i > 0 || ours.x.at(i, d) == expected.x.at(i, d);
    }
  check(own && others, name);
}

void test_small() {
  for (const Case& test : all_cases()) {
    for (const int dim : {1, 3, 4, 7, 15}) {
      test_sums<float>("small", near_setup(few(dim)), test, {0, kX, kAll});
      if (!quick && dim % 4 == 3)
        test_sums<float>("small ragged", near_setup(ragged(dim)), test, {0, kY | kB});
    }
    test_sums<float>("small split", near_setup(split(3)), test, {0, kY, kAll});
    for (const int dim : {1, 3, 8}) {
      test_sums<double>("small", near_setup(few(dim), DType::float64), test, {0, kAll});
    }
  }
  for (const Case& test : {kGaussian, kPlan})
    for (const int dim : {1, 15}) {
      test_sums<float>("small", plan_setup(few(dim)), test, {0, kAll});
      test_sums<double>("small", plan_setup(split(dim % 8), DType::float64), test, {0, kAll});
      test_matvec<float>(plan_setup(few(dim)), test, 1, 0);
    }
  test_poison("small", 3);
  if (quick) return;
  for (const int dim : {1, 4, 15})
    test_sums<float>("small tiles", near_setup(tiles(dim)), kGaussian, {kB, kAll});
  test_sums<double>("small ragged", near_setup(ragged(7), DType::float64), kEnergy, {kY, kAll});
  test_rows_of_callers("small", {3});
}

void test_fused() {
  for (const Precision precision : kPrecisions) {
    for (const int dim : {16, 33, 100, 200})
      for (const Case& test : {kGaussian, kGaussian5, kLaplacian})
        test_sums<float>("fused", near_setup(few(dim)), test, {0, kAll}, precision);
    for (const Case& test : {kGaussian, kPlan})
      test_sums<float>("fused", plan_setup(few(33), DType::float32, Near::copies), test, {0, kAll},
                       precision);
    test_sums<float>("fused split", near_setup(split(129)), kGaussian, {kX, kY}, precision);
    test_sums<float>("fused alike", near_setup(alike(33)), kGaussian, {kAll}, precision);
    if (quick) continue;
    for (const int dim : {16, 31, 64, 65, 128, 129, 256})
      test_sums<float>("fused ragged", near_setup(ragged(dim)), dim % 2 ? kCross : kGaussian, {0, kY | kB},
                       precision);
    for (const Case& test : all_cases())
      test_sums<float>("fused all", near_setup(few(31)), test, {kAll}, precision);
    test_sums<float>("fused tiles", near_setup(tiles(33)), kGaussian, {0, kX, kB}, precision);
  }
  test_poison("fused", 33);
  if (!quick) test_rows_of_callers("fused", {99});
}

void test_weights() {
  for (const Precision precision : kPrecisions)
    for (const Case& test : {kGaussian, kLaplacian}) {
      test_sums<float>("weights", near_setup(few(260)), test, {0, kAll}, precision);
      test_sums<float>("weights", near_setup(narrow(257)), test, {0, kX, kB, kAll}, precision);
      test_sums<float>("weights split", near_setup(split(257)), test, {kX}, precision);
      if (quick) continue;
      test_sums<float>("weights ragged", near_setup(ragged(300)), test, {0, kY | kB}, precision);
    }
  for (const Case& test : {kGaussian, kPlan}) {
    test_sums<float>("weights", plan_setup(few(257)), test, {0, kAll});
    test_sums<double>("weights", plan_setup(few(9), DType::float64), test, {0, kAll});
  }
  for (const Case& test : {kGaussian, kLaplacian, kLinear})
    for (const int dim : {9, 20}) {
      test_sums<double>("weights", near_setup(few(dim), DType::float64), test, {0, kAll});
      test_sums<double>("weights split", near_setup(split(dim), DType::float64), test, {kY});
    }
  test_sums<float>("weights alike", near_setup(alike(257)), kLaplacian, {kAll});
  test_poison("weights", 257);
  if (quick) return;
  for (const Case& test : all_cases()) {
    test_sums<float>("weights all", near_setup(few(257)), test, {kAll});
    test_sums<double>("weights all", near_setup(few(20), DType::float64), test, {0, kY | kB});
  }
  test_sums<float>("weights tiles", near_setup(tiles(257)), kGaussian, {kX});
  test_sums<double>("weights tiles", near_setup(tiles(35), DType::float64), kGaussian, {kX});
  test_rows_of_callers("weights", {257});
}

void test_hvps() {
  const int moving = kAll, points = kX, weights = kNeedA | kNeedB;
  for (const Precision precision : kPrecisions)
    for (const int dim : {3, 20, 70}) {
      test_hvp<float>(near_setup(few(dim)), kGaussian, {kAll, kX}, moving, precision);
      test_hvp<float>(far_setup(few(dim)), kLaplacian, {kAll}, points, precision);
      test_hvp<float>(near_setup(few(dim)), kCross, {kAll}, weights, precision);
    }
  for (const int dim : {3, 20}) {
    test_hvp<double>(near_setup(few(dim), DType::float64), kGaussian, {kAll, kY}, moving);
    test_hvp<double>(far_setup(few(dim), DType::float64), kEnergy, {kAll}, kY | kB);
  }
  for (const Case& test : {kGaussian, kPlan})
    for (const int dim : {3, 20}) {
      test_hvp<float>(plan_setup(few(dim), DType::float32, Near::none), test, {kAll}, moving);
      test_hvp<double>(plan_setup(few(dim), DType::float64, Near::none), test, {kAll}, moving);
    }
  Setup lifted = plan_setup(few(20), DType::float64, Near::none);
  lifted.lift = 1000;  // with nothing on the other side, a pair would be infinite
  test_hvp<double>(lifted, make_case("lifted", Profile::gaussian, {1}, {0, -2, 0}), {kAll}, moving);
  test_hvp<float>(near_setup(split(20)), kGaussian, {kAll}, moving);
  test_hvp<float>(near_setup(alike(20)), kGaussian, {kAll}, moving);
  if (quick) return;
  for (const Case& test : all_cases())
    for (const int dim : {1, 15, 16}) {
      test_hvp<float>(far_setup(few(dim)), test, {kY, kAll}, moving);
      test_hvp<double>(far_setup(few(dim), DType::float64), test, {kX, kAll}, moving);
    }
  test_hvp<float>(far_setup(ragged(257)), kGaussian, {kAll}, moving);
  test_hvp<double>(far_setup(ragged(9), DType::float64), kEnergy, {kAll}, moving);
  test_hvp<float>(near_setup(tiles(20)), kGaussian, {kX}, moving);
  // More weights than scratch holds at a time, cut inside a row tile.
  Shape many{std::vector<int>(180, 1), std::vector<int>(180, 2), 1};
  many.y[0] = 257;
  test_hvp<float>(far_setup(many), kGaussian, {kAll}, moving);
  test_hvp<double>(far_setup(many, DType::float64), kGaussian, {kAll}, moving);
}

void test_matvecs() {
  for (const Precision precision : kPrecisions)
    for (const int columns : {1, 3, 70}) {
      test_matvec<float>(near_setup(few(20)), kGaussian, columns, 0, precision);
      test_matvec<float>(near_setup(narrow(40)), kLaplacian, columns, 2, precision);
    }
  for (const int columns : {1, 3, 70}) {
    test_matvec<double>(near_setup(few(20), DType::float64), kGaussian, columns, 1);
    for (const Case& test : {kGaussian, kPlan}) {
      test_matvec<float>(plan_setup(few(20)), test, columns, 1);
      test_matvec<double>(plan_setup(few(20), DType::float64), test, columns, 1);
    }
    test_matvec<float>(near_setup(few(3)), kGaussian, columns, 1);
    test_matvec<float>(near_setup(split(17)), kEnergy, columns, 0);
    if (quick) continue;
    for (const Case& test : all_cases()) test_matvec<float>(near_setup(ragged(33)), test, columns, 1);
    test_matvec<double>(near_setup(tiles(9), DType::float64), kLaplacian, columns, 0);
  }
  if (quick) return;
  // More weights than scratch holds at a time, in tiles of 64 x 64.
  const Shape many{std::vector<int>(510, 33), std::vector<int>(510, 1), 1};
  test_matvec<float>(far_setup(many), kGaussian, 3, 0);
}

template <class T>
void test_segment_sums(const Setup& setup, const std::string& name) {
  if (!selected(name)) return;
  Problem<T> p(setup);
  const int64_t segments = p.count(), dim = setup.shape.dim;
  const std::vector<int64_t> none((size_t)segments + 1);
  Clouds clouds = p.clouds(Kernel{}, nullptr);
  clouds.y_offsets = none.data();
  const Grid<T> out = in_all_orders(name, [&] {
    Grid<T> sums(segments, dim, 2);
    execute(sizes_of(Op::rows, clouds, 1, 0, 0, 1), Precision::highest,
            [&](const Execution& e) { segment_sums(clouds, sums.matrix(), e); });
    return sums;
  });
  Bound bound;
  for (int64_t c = 0; c < segments; ++c)
    for (int d = 0; d < dim; ++d) {
      const reference::Segment& s = p.segments[c];
      double total = 0;
      for (int i = 0; i < s.n; ++i) total += s.w[i] * s.z[i * dim + d];
      bound.add(std::fabs(total - (double)out.at(c, d)), sizeof(T) == 8 ? 1e-14 : 1e-6);
    }
  bound.report(name, "segment sums");
  check(out.spare_untouched(), name + " writes between rows");
}

struct Bandwidths : std::vector<double> {
  using std::vector<double>::vector;
  bool same_bits(const Bandwidths& o) const {
    return !std::memcmp(data(), o.data(), size() * sizeof(double));
  }
};

template <class T>
void test_mean_bandwidth(Setup setup, const std::string& name) {
  if (!selected(name)) return;
  setup.from_data = true;
  Problem<T> p(setup);
  const Bandwidths ours = in_all_orders(name, [&] {
    Bandwidths all(p.segments.size(), NAN);
    execute(p.sizes(Op::rows, 0, 0), Precision::highest,
            [&](const Execution& e) { mean_bandwidth(p.clouds(Kernel{}, all.data()), e); });
    return all;
  });
  Bound bound;
  for (size_t c = 0; c < ours.size(); ++c) {
    const reference::Segment& s = p.segments[c];
    const double exact = s.n + s.m < 2 ? std::sqrt(0.5e-10) : p.bandwidth(s);
    bound.add(std::fabs(ours[c] - exact), exact * (sizeof(T) == 8 ? 1e-13 : 1e-6));
  }
  bound.report(name, "bandwidth");
}

void test_rows() {
  const Shape shapes[] = {
      {{0, 5, 40, 1}, {1, 1, 0, 0}, 19}, {{33, 17}, {16, 3}, 3}, {{17}, {2}, 517}, {{1100}, {20}, 2}};
  for (const Shape& shape : shapes) {
    const std::string name = "rows D=" + std::to_string(shape.dim);
    for (const bool weighted : {false, true}) {
      Setup setup = far_setup(shape);
      setup.weighted = weighted;
      test_segment_sums<float>(setup, name + " sums");
      setup.rows = DType::float64;
      test_segment_sums<double>(setup, name + " sums double");
    }
    test_mean_bandwidth<float>(near_setup(shape), name + " bandwidth");
    test_mean_bandwidth<double>(near_setup(shape, DType::float64), name + " bandwidth double");
    test_mean_bandwidth<float>(near_setup(shape, DType::float32, Layout::padded), name + " bandwidth padded");
    if (quick) continue;
    for (const Layout layout : {Layout::padded, Layout::shifted, Layout::odd})
      for (const DType rows : {DType::float32, DType::float16, DType::bfloat16}) {
        test_segment_sums<float>(near_setup(shape, rows, layout), name + " sums layouts");
        test_mean_bandwidth<float>(near_setup(shape, rows, layout), name + " bandwidth layouts");
      }
  }
}

// Costs that are kept, and of which there are too many: of the cross term, of that of x with itself.
Shape kept(int dim) {
  return {{0, 1, 9, 66, 2}, {3, 1, 5, 17, 0}, dim};
}
Shape wide(int dim) {
  return {{5, 66}, {1030, 1}, dim};
}
Shape large(int dim) {
  return {{260}, {3}, dim};
}

template <class T>
void test_transports_of(const std::string& group, const Shape& shape, int terms) {
  for (const int power : {1, 2})
    for (TransportCase& test : transport_cases(power)) {
      test.terms = test.mass > 0 ? terms & kTermXY : terms;
      test_transport<T>(group, near_setup(shape, dtype_of<T>), test);
    }
}

void test_transports() {
  for (const int dim : {2, 20}) {
    test_transports_of<float>("kept", kept(dim), kTermXY | kTermXX | kTermYY);
    test_transports_of<double>("kept", kept(dim), kTermXY | kTermXX | kTermYY);
  }
  test_transports_of<float>("wide", wide(33), kTermXY);
  test_transports_of<double>("wide", wide(3), kTermXY);
  for (const int power : {1, 2}) {
    const TransportCase test = make_transport("balanced", power);
    test_transport<float>("large", near_setup(large(16)), test);
    test_transport<float>("large", near_setup(large(2)), test);
    // Rounded rows are other rows.
    for (const Precision precision : {Precision::high, Precision::medium})
      test_transport<float>("kept", far_setup(kept(40)), test, precision,
                            precision == Precision::high ? 1000 : 8000);
  }
  if (quick) return;
  test_transports_of<float>("large", large(2), kTermXY | kTermXX | kTermYY);
  for (const int power : {1, 2}) {
    const TransportCase test = make_transport("balanced", power);
    test_transport<float>("large", near_setup(large(260)), test);
    test_transport<double>("large", near_setup(large(260), DType::float64), test);
  }
  TransportCase test = make_transport("balanced", 2);
  test_transport<float>("both", near_setup({{300}, {270}, 33}), test);
  test.labels = true;
  test_transport<float>("both labels", near_setup({{300}, {270}, 33}), test);
}

struct Group {
  const char* name;
  void (*test)();
};
const Group kGroups[] = {{"small", test_small},
                         {"fused", test_fused},
                         {"weights", test_weights},
                         {"hvp", test_hvps},
                         {"matvec", test_matvecs},
                         {"rows", test_rows},
                         {"norm", test_norms},
                         {"transport", test_transports},
                         {"layers", test_layers},
                         {"samples", test_samples},
                         {"gradients", test_lists},
                         {"characteristic", test_characteristics},
                         {"projections", test_projections}};

std::set<const void*> launched;

void run(const Group& group) {
  try {
    group.test();
  } catch (const std::exception& error) {
    check(false, std::string(group.name) + ": " + error.what());
  }
}

}  // namespace

extern "C" void note_launch(const void* kernel) {
  launched.insert(kernel);
}

static void write_launched(const std::string& path) {
  std::ofstream file(path, std::ios::app);
  for (const void* kernel : launched) file << (const char*)kernel - (const char*)&note_launch << "\n";
}

int main(int count, char** words) {
  std::string path;
  std::set<std::string> groups;
  for (int w = 1; w < count; ++w) {
    const std::string word = words[w];
    if (word == "--quick")
      quick = true;
    else if (word == "--only" && w + 1 < count)
      only = words[++w];
    else if (word == "--launched" && w + 1 < count)
      path = words[++w];
    else
      groups.insert(word);
  }
  for (const Group& group : kGroups)
    if (groups.empty() || groups.count(group.name)) run(group);
  for (const auto& [kind, part] : closest)
    std::printf("%s: largest error %.2g of its bound\n", kind.c_str(), part);
  if (!path.empty()) write_launched(path);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed || !passed ? 1 : 0;
}
