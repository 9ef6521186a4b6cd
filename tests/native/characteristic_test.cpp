// Characteristic means without Python: against naive double sums, and bitwise the same on 1, 2 and 3 threads.
#include "characteristic_reference.h"
#include "problem.h"

namespace {

using characteristic_case::Exact;
using characteristic_case::Inputs;
using characteristic_case::Result;
using characteristic_case::Setup;

template <class T>
struct Results {
  std::vector<T> cosine, sine, x, f, w;

  bool operator==(const Results& o) const {
    const auto same = [](const std::vector<T>& a, const std::vector<T>& b) {
      return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(T));
    };
    return same(cosine, o.cosine) && same(sine, o.sine) && same(x, o.x) && same(f, o.f) && same(w, o.w);
  }
};

// wanted: bits for sums, x, frequencies and weights.
template <class T>
Results<T> run(Inputs& in, CharacteristicOp op, int wanted, int threads, std::vector<T>* products = nullptr) {
  const std::vector<int64_t> ends = in.setup.offsets();
  CharacteristicArguments a = characteristic_case::arguments(in, op, ends);
  Results<T> out;
  const auto give = [](bool want, std::vector<T>& to, Matrix& m, int64_t rows, int64_t columns) {
    if (!want) return;
    to = unwritten<T>((size_t)(rows * columns));
    m = matrix(to, rows, columns);
  };
  give(wanted & 1, out.cosine, a.cosine, a.segments, in.f.rows);
  give(wanted & 1, out.sine, a.sine, a.segments, in.f.rows);
  give(wanted & 2, out.x, a.out_x, in.x.rows, in.x.columns);
  give(wanted & 4, out.f, a.out_frequencies, in.f.rows, in.f.columns);
  give(wanted & 8, out.w, a.out_weights, in.x.rows, 1);
  if (products) a.products = matrix(*products, in.x.rows, in.f.rows);
  execute(plan_characteristic(a, threads), threads, [&](const Execution& e) { characteristic(a, e); });
  return out;
}

template <class T>
void compare(const std::vector<T>& ours, const Result& exact, const std::string& name) {
  if (ours.empty()) return;
  const double allowed = sizeof(T) == 8 ? 2e-14 : 4e-6;
  double worst = 0;
  for (size_t k = 0; k < ours.size(); ++k) {
    const double error = std::fabs((double)ours[k] - exact.value[k]);
    const double share = error == 0 ? 0 : error / exact.size[k];
    worst = share <= worst ? worst : std::isnan(share) ? INFINITY : share;
  }
  check(worst <= allowed, name, worst, allowed);
}

template <class T>
void test_setup(const Setup& setup, DType rows) {
  Inputs in(setup, rows, dtype_of<T>);
  const struct {
    CharacteristicOp op;
    const char* name;
    int wanted;
  } calls[] = {{CharacteristicOp::value, "value", 1},    {CharacteristicOp::grad, "grad", 14},
               {CharacteristicOp::grad, "grad x", 2},    {CharacteristicOp::second, "second", 15},
               {CharacteristicOp::second, "sums", 1},    {CharacteristicOp::second, "second x", 2},
               {CharacteristicOp::second, "second f", 4}};
  for (const auto& call : calls) {
    const std::string name =
        "characteristic " + setup.name + " " + std::to_string((int)rows) + " " + call.name;
    const Exact exact = characteristic_case::exact(in, call.op);
    const Results<T> one = run<T>(in, call.op, call.wanted, 1);
    compare(one.cosine, exact.cosine, name + " cosine");
    compare(one.sine, exact.sine, name + " sine");
    compare(one.x, exact.x, name + " rows");
    compare(one.f, exact.f, name + " frequencies");
    compare(one.w, exact.w, name + " weights");
    for (const int threads : {2, 3})
      check(run<T>(in, call.op, call.wanted, threads) == one, name + " on threads");
    if (call.op != CharacteristicOp::grad) continue;
    std::vector<T> products = unwritten<T>((size_t)(in.x.rows * in.f.rows));
    run<T>(in, CharacteristicOp::value, 1, 2, &products);
    check(run<T>(in, call.op, call.wanted, 2, &products) == one, name + " of kept products");
  }
}

// Arguments of all sizes, each a segment of one row.
template <class T>
void test_circle() {
  const double sizes[] = {1, 1e3, 1e4, 3e4, 1e6, 1e8, 1e9, 1e15, 1e30};
  for (const double size : sizes) {
    Setup setup{"circle", std::vector<int>(97, 1), 1, 1};
    Inputs in(setup, dtype_of<T>, dtype_of<T>, std::sqrt(size));
    const Results<T> ours = run<T>(in, CharacteristicOp::value, 1, 1);
    double worst = 0;
    for (size_t i = 0; i < 97; ++i) {
      const double t = (double)(T)(in.x.values[i] * in.f.values[0]), w = in.w.values[i];
      worst = std::fmax(worst, std::fabs((double)ours.cosine[i] / w - std::cos(t)));
      worst = std::fmax(worst, std::fabs((double)ours.sine[i] / w - std::sin(t)));
    }
    const double allowed = 3 * (sizeof(T) == 8 ? 0x1p-52 : 0x1p-23);
    check(worst <= allowed, "circle of " + std::to_string(size), worst, allowed);
  }
}

}  // namespace

void test_characteristic() {
  for (const Setup& setup : characteristic_case::all_setups()) {
    test_setup<float>(setup, DType::float32);
    test_setup<float>(setup, DType::bfloat16);
    test_setup<double>(setup, DType::float64);
  }
  test_setup<float>({"panels", {100, 480, 3}, 1000, 9}, DType::float32);
  test_setup<double>({"panels", {481}, 961, 4}, DType::float64);
  test_circle<float>();
  test_circle<double>();
}
