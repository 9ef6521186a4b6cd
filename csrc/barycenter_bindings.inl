// Part of bindings.cpp: free-support barycentres, which the CPU alone has.

#ifndef DECOCT_CUDA_NAME

BarycenterArguments make_barycenter(const Matrix& x, const Matrix& points, const Matrix& x_offsets,
                                    const Matrix& measure_offsets, const Matrix& point_offsets) {
  check(x.dtype <= DType::bfloat16, "x: expected floating-point rows");
  check_shape(points, "points", points.rows, x.columns, compute_type(x));
  BarycenterArguments arguments{};
  arguments.x = x;
  arguments.points = points;
  arguments.measures = x_offsets.rows - 1;
  arguments.groups = point_offsets.rows - 1;
  check(measure_offsets.rows == point_offsets.rows,
        "measure_offsets: expected as many offsets as point_offsets");
  arguments.x_offsets = check_offsets(x_offsets, "x_offsets", x.rows);
  arguments.measure_offsets = check_offsets(measure_offsets, "measure_offsets", arguments.measures);
  arguments.point_offsets = check_offsets(point_offsets, "point_offsets", points.rows);
  return arguments;
}

int64_t run_barycenter_bytes(const Matrix& x, const Matrix& points, const Matrix& x_offsets,
                             const Matrix& measure_offsets, const Matrix& point_offsets, int threads) {
  return barycenter_workspace_bytes(make_barycenter(x, points, x_offsets, measure_offsets, point_offsets),
                                    threads);
}

void run_barycenter(const Matrix& x, const Matrix& points, const Matrix& x_offsets,
                    const Matrix& measure_offsets, const Matrix& point_offsets, const MaybeMatrix& a,
                    const Matrix& shares, const Matrix& masses, bool learned, double first_blur, double blur,
                    double scaling, double step, double tolerance, double marginal_tolerance, int iterations,
                    int inner_iterations, const Matrix& cost, const Matrix& movement, const Matrix& made,
                    const Matrix& workspace, int threads) {
  check(blur > 0 && first_blur >= blur && scaling > 0 && scaling < 1 && step > 0 && step <= 1 &&
            tolerance >= 0 && marginal_tolerance >= 0 && iterations >= 0 && inner_iterations >= 1,
        "barycenter: blur must be positive and at most first_blur, scaling between 0 and 1, step at most 1, "
        "the rest not negative");
  BarycenterArguments arguments = make_barycenter(x, points, x_offsets, measure_offsets, point_offsets);
  for (int64_t g = 0; learned && g < arguments.groups; ++g)
    check(arguments.measure_offsets[g + 1] - arguments.measure_offsets[g] <= 1,
          "measure_offsets: expected one measure a group with learned masses");
  const DType type = compute_type(x);
  check(x.data || x.rows * x.columns == 0, "x: null pointer");
  arguments.a = given(a, "a", x.rows, 1, type);
  check_shape(shares, "shares", arguments.measures, 1, DType::float64);
  check_shape(masses, "masses", points.rows, 1, type);
  check_shape(cost, "cost", arguments.groups, 1, DType::float64);
  check_shape(movement, "movement", arguments.groups, 1, DType::float64);
  check_shape(made, "made", arguments.groups, 1, DType::int64);
  check(threads >= 1, "threads: expected at least 1");
  check(workspace.dtype == DType::uint8 && workspace.columns == 1 &&
            workspace.rows >= barycenter_workspace_bytes(arguments, threads),
        "workspace: fewer bytes than barycenter_workspace_bytes() asked for");
  arguments.shares = (const double*)shares.data;
  arguments.masses = masses;
  arguments.learned = learned;
  arguments.first_blur = first_blur;
  arguments.blur = blur;
  arguments.scaling = scaling;
  arguments.step = step;
  arguments.tolerance = tolerance;
  arguments.marginal_tolerance = marginal_tolerance;
  arguments.iterations = iterations;
  arguments.inner_iterations = inner_iterations;
  arguments.cost = (double*)cost.data;
  arguments.movement = (double*)movement.data;
  arguments.made = (int64_t*)made.data;
  Execution execution;
  execution.workspace = workspace.data;
  execution.workspace_bytes = workspace.rows;
  execution.threads = threads;
  const py::gil_scoped_release release;
  barycenter(arguments, execution);
}

void bind_barycenter(py::module_& m) {
  using namespace py::literals;
  m.def("barycenter_workspace_bytes", &run_barycenter_bytes, py::kw_only(), "x"_a, "points"_a, "x_offsets"_a,
        "measure_offsets"_a, "point_offsets"_a, "threads"_a);
  m.def("barycenter", &run_barycenter, py::kw_only(), "x"_a, "points"_a, "x_offsets"_a, "measure_offsets"_a,
        "point_offsets"_a, "a"_a, "shares"_a, "masses"_a, "learned"_a, "first_blur"_a, "blur"_a, "scaling"_a,
        "step"_a, "tolerance"_a, "marginal_tolerance"_a, "iterations"_a, "inner_iterations"_a, "cost"_a,
        "movement"_a, "made"_a, "workspace"_a, "threads"_a);
}

#else

void bind_barycenter(py::module_&) {}

#endif
