// Characteristic means for kernels_test.
#pragma once
#include "../native/characteristic_reference.h"
#include "kernel_checks.h"

namespace cases {

template <class T>
struct CharacteristicResults {
  Grid<T> cosine, sine, x, f, w;

  bool same_bits(const CharacteristicResults& o) const {
    return cosine.same_bits(o.cosine) && sine.same_bits(o.sine) && x.same_bits(o.x) && f.same_bits(o.f) &&
           w.same_bits(o.w);
  }
};

// wanted: bits for sums, x, frequencies and weights.
template <class T>
CharacteristicResults<T> run_characteristic(characteristic_case::Inputs& in, CharacteristicOp op, int wanted,
                                            Precision precision, Grid<T>* products = nullptr) {
  const std::vector<int64_t> ends = in.setup.offsets();
  CharacteristicArguments a = characteristic_case::arguments(in, op, ends);
  CharacteristicResults<T> out;
  const auto give = [](bool want, Grid<T>& to, Matrix& m, int64_t rows, int64_t columns, int gap) {
    if (!want) return;
    to = Grid<T>(rows, columns, gap);
    m = to.matrix();
  };
  give(wanted & 1, out.cosine, a.cosine, a.segments, in.f.rows, 3);
  give(wanted & 1, out.sine, a.sine, a.segments, in.f.rows, 1);
  give(wanted & 2, out.x, a.out_x, in.x.rows, in.x.columns, 0);
  give(wanted & 4, out.f, a.out_frequencies, in.f.rows, in.f.columns, 0);
  give(wanted & 8, out.w, a.out_weights, in.x.rows, 1, 0);
  if (products) a.products = products->matrix();
  execute(plan_characteristic(a, 1), precision, [&](const Execution& e) { characteristic(a, e); });
  return out;
}

template <class T>
void test_characteristic(const characteristic_case::Setup& setup, DType rows,
                         Precision precision = Precision::highest) {
  const struct {
    CharacteristicOp op;
    const char* name;
    int wanted;
  } calls[] = {{CharacteristicOp::value, "value", 1},
               {CharacteristicOp::grad, "grad", 14},
               {CharacteristicOp::second, "second", 15},
               {CharacteristicOp::second, "sums", 1},
               {CharacteristicOp::second, "rows", 2}};
  characteristic_case::Inputs in(setup, rows, dtype_of<T>);
  for (const auto& call : calls) {
    const std::string name = "characteristic " + setup.name + " " + std::to_string((int)rows) + " " +
                             precision_name<T>(precision) + " " + call.name;
    if (!selected(name)) continue;
    const characteristic_case::Exact exact = characteristic_case::exact(in, call.op);
    const CharacteristicResults<T> ours =
        in_all_orders(name, [&] { return run_characteristic<T>(in, call.op, call.wanted, precision); });
    const double unit = unit_of<T>(precision);
    const std::string kind = precision_name<T>(precision) + " characteristic";
    compare_sums(ours.cosine, exact.cosine.value, exact.cosine.size, unit, name + " cosine", kind + " sums");
    compare_sums(ours.sine, exact.sine.value, exact.sine.size, unit, name + " sine", kind + " sums");
    compare_sums(ours.x, exact.x.value, exact.x.size, unit, name + " rows", kind + " rows");
    compare_sums(ours.f, exact.f.value, exact.f.size, unit, name + " frequencies", kind + " frequencies");
    compare_sums(ours.w, exact.w.value, exact.w.size, unit, name + " weights", kind + " weights");
    if (call.op != CharacteristicOp::grad) continue;
    Grid<T> products(in.x.rows, in.f.rows, 0);
    run_characteristic<T>(in, CharacteristicOp::value, 1, precision, &products);
    const auto again = in_all_orders(
        name, [&] { return run_characteristic<T>(in, call.op, call.wanted, precision, &products); });
    check(again.same_bits(ours), name + " of kept products");
  }
}

inline void test_characteristics() {
  for (const characteristic_case::Setup& setup : characteristic_case::all_setups()) {
    test_characteristic<float>(setup, DType::float32);
    test_characteristic<double>(setup, DType::float64);
    if (quick && setup.name != "narrow") continue;
    test_characteristic<float>(setup, DType::bfloat16);
    test_characteristic<float>(setup, DType::float32, Precision::high);
    test_characteristic<float>(setup, DType::float32, Precision::medium);
  }
  if (!quick) test_characteristic<float>({"panels", {100, 950}, 4150, 2}, DType::float32);
}

}  // namespace cases
