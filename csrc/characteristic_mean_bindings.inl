// Part of bindings.cpp: characteristic means.

const std::map<std::string, CharacteristicOp> kCharacteristicOps = {{"value", CharacteristicOp::value},
                                                                    {"grad", CharacteristicOp::grad},
                                                                    {"second", CharacteristicOp::second}};

CharacteristicArguments make_characteristic(const std::string& op, const Matrix& x, const Matrix& frequencies,
                                            const Matrix& offsets) {
  CharacteristicArguments a{};
  a.op = find(kCharacteristicOps, op, "op");
  check(x.dtype <= DType::bfloat16, "x: expected floating-point rows");
  check(frequencies.columns == x.columns && frequencies.dtype == x.dtype,
        "frequencies: expected the columns and the dtype of x");
  a.x = x;
  a.frequencies = frequencies;
  a.segments = offsets.rows - 1;
  a.offsets = check_offsets(offsets, "offsets", x.rows);
  return a;
}

// What else a call has, in the order of bits from the lowest on.
std::array<Matrix*, 8> characteristic_parts(CharacteristicArguments& a) {
  return {&a.cosine,          &a.sine,  &a.tangent_x,       &a.tangent_frequencies,
          &a.tangent_weights, &a.out_x, &a.out_frequencies, &a.out_weights};
}

py::tuple run_plan_characteristic(const std::string& op, const Matrix& x, const Matrix& frequencies,
                                  const Matrix& offsets, int parts, int threads) {
  CharacteristicArguments a = make_characteristic(op, x, frequencies, offsets);
  const auto all = characteristic_parts(a);
  for (size_t k = 0; k < all.size(); ++k) {
    all[k]->columns = all[k]->stride = x.columns;  // of those that have as many, which alone matter
    if (parts >> k & 1) all[k]->data = (void*)alignof(double);
  }
  const Plan made = plan_characteristic(a, threads);
  return py::make_tuple(py::array_t<int32_t>((py::ssize_t)made.schedule.size(), made.schedule.data()),
                        made.workspace_bytes);
}

void run_characteristic(const std::string& op, const Matrix& x, const Matrix& frequencies,
                        const Matrix& weights, const Matrix& offsets, const MaybeMatrix& bar_cosine,
                        const MaybeMatrix& bar_sine, const MaybeMatrix& tangent_x,
                        const MaybeMatrix& tangent_frequencies, const MaybeMatrix& tangent_weights,
                        const MaybeMatrix& cosine, const MaybeMatrix& sine, const MaybeMatrix& out_x,
                        const MaybeMatrix& out_frequencies, const MaybeMatrix& out_weights,
                        const MaybeMatrix& products, const Execution& execution) {
  CharacteristicArguments a = make_characteristic(op, x, frequencies, offsets);
  const DType type = a.type();
  const int64_t n = x.rows, f = frequencies.rows, d = x.columns, s = a.segments;
  check((x.data || n * d == 0) && (frequencies.data || f * d == 0), "x, frequencies: null pointer");
  a.weights = given(weights, "weights", n, 1, type);
  a.bar_cosine = given(bar_cosine, "bar_cosine", s, f, type);
  a.bar_sine = given(bar_sine, "bar_sine", s, f, type);
  a.tangent_x = given(tangent_x, "tangent_x", n, d, type);
  a.tangent_frequencies = given(tangent_frequencies, "tangent_frequencies", f, d, type);
  a.tangent_weights = given(tangent_weights, "tangent_weights", n, 1, type);
  a.cosine = given(cosine, "cosine", s, f, type);
  a.sine = given(sine, "sine", s, f, type);
  a.out_x = given(out_x, "out_x", n, d, type);
  a.out_frequencies = given(out_frequencies, "out_frequencies", f, d, type);
  a.out_weights = given(out_weights, "out_weights", n, 1, type);
  a.products = given(products, "products", n, f, type);
  check(!products || n <= 1 || f == 0 || a.products.stride == f, "products: expected no gaps between rows");
  const bool value = a.op == CharacteristicOp::value, second = a.op == CharacteristicOp::second;
  check(
      !cosine == !sine && (cosine || !value) && (second || value || !cosine),
      "cosine, sine: expected both with a value, both or neither with second derivatives, and else neither");
  check(!value || (!out_x && !out_frequencies && !out_weights), "out: expected with derivatives only");
  check(second || (!tangent_x && !tangent_frequencies && !tangent_weights),
        "tangents: expected with second derivatives only");
  for (const Matrix* out : {&a.out_x, &a.out_frequencies})
    check(!out->data || out->rows <= 1 || out->stride == d, "out: expected no gaps between its rows");
  const Plan made = plan_characteristic(a, execution.threads);
  const auto* header = (const ScheduleHeader*)execution.schedule;
  check(header->words == (int64_t)made.schedule.size() &&
            std::equal(made.schedule.begin(), made.schedule.end(), execution.schedule),
        "schedule: made for another call");
  check(execution.workspace_bytes >= made.workspace_bytes, "workspace: smaller than plan() asked for");
  const py::gil_scoped_release release;
  characteristic(a, execution);
}

void bind_characteristic(py::module_& m) {
  using namespace py::literals;
  m.def("plan_characteristic", &run_plan_characteristic, py::kw_only(), "op"_a, "x"_a, "frequencies"_a,
        "offsets"_a, "parts"_a, "threads"_a);
  m.def("characteristic", &run_characteristic, py::kw_only(), "op"_a, "x"_a, "frequencies"_a, "weights"_a,
        "offsets"_a, "bar_cosine"_a = py::none(), "bar_sine"_a = py::none(), "tangent_x"_a = py::none(),
        "tangent_frequencies"_a = py::none(), "tangent_weights"_a = py::none(), "cosine"_a = py::none(),
        "sine"_a = py::none(), "out_x"_a = py::none(), "out_frequencies"_a = py::none(),
        "out_weights"_a = py::none(), "products"_a = py::none(), "execution"_a);
}
