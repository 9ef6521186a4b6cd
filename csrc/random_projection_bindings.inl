// Part of bindings.cpp: random projections.

RandomProjectionArguments make_random_projection(const Matrix& x, const Matrix& out, bool transposed) {
  RandomProjectionArguments a{};
  check(x.dtype <= DType::bfloat16, "x: expected floating-point rows");
  a.x = x;
  a.out = out;
  a.transposed = transposed;
  return a;
}

py::tuple run_plan_random_projection(const Matrix& x, const Matrix& out, bool transposed, int threads) {
  const Plan made = plan_random_projection(make_random_projection(x, out, transposed), threads);
  return py::make_tuple(py::array_t<int32_t>((py::ssize_t)made.schedule.size(), made.schedule.data()),
                        made.workspace_bytes);
}

void run_random_projection(const Matrix& x, const Matrix& out, bool transposed, uint64_t seed,
                           uint64_t stream, double factor, const Execution& execution) {
  RandomProjectionArguments a = make_random_projection(x, out, transposed);
  a.out = given(out, "out", x.rows, out.columns, a.type());
  check(x.data || x.rows * x.columns == 0, "x: null pointer");
  a.seed = seed;
  a.stream = stream;
  a.factor = factor;
  check(execution.workspace_bytes >= plan_random_projection(a, execution.threads).workspace_bytes,
        "workspace: smaller than plan() asked for");
  const py::gil_scoped_release release;
  random_projection(a, execution);
}

void bind_random_projection(py::module_& m) {
  using namespace py::literals;
  m.def("plan_random_projection", &run_plan_random_projection, py::kw_only(), "x"_a, "out"_a, "transposed"_a,
        "threads"_a);
  m.def("random_projection", &run_random_projection, py::kw_only(), "x"_a, "out"_a, "transposed"_a, "seed"_a,
        "stream"_a, "factor"_a, "execution"_a);
}
