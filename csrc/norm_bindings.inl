// Part of bindings.cpp: normalisation.

// A matrix of images, in the elements' dtype, or one of (N, groups) or (C, 1) numbers in the type of
// computation.
Matrix norm_matrix(const MaybeMatrix& m, const char* name, int64_t rows, int64_t columns, DType dtype) {
  const Matrix checked = given(m, name, rows, columns, dtype);
  check(!m || m->rows <= 1 || m->stride == columns,
        std::string(name) + ": expected no gaps between its rows");
  return checked;
}

NormShape make_norm_shape(int64_t images, int64_t channels, int64_t groups, int64_t height, int64_t width,
                          int64_t pool_height, int64_t pool_width, bool relu, bool channels_last,
                          double epsilon) {
  check(images >= 0 && channels >= 0 && height >= 0 && width >= 0, "NormShape: sizes must not be negative");
  check(groups >= 1 && channels % groups == 0, "NormShape: groups must divide the channels");
  check(!channels_last || groups == channels, "NormShape: channels_last needs a group for each channel");
  check(pool_height >= 1 && pool_width >= 1, "NormShape: windows must be at least one pixel");
  check(epsilon >= 0, "NormShape: epsilon must not be negative");
  return {images, channels, groups, height, width, pool_height, pool_width, relu, channels_last, epsilon};
}

NormProblem make_norm(const NormShape& shape, const Matrix& x, const MaybeMatrix& weight,
                      const MaybeMatrix& bias, const Matrix& mean, const Matrix& factor) {
  check(x.dtype <= DType::bfloat16, "x: expected floating-point images");
  NormProblem p{};
  const DType type = compute_type(x);
  p.shape = shape;
  p.x = norm_matrix(x, "x", shape.images, shape.channels * shape.pixels(), x.dtype);
  p.weight = norm_matrix(weight, "weight", shape.channels, 1, type);
  p.bias = norm_matrix(bias, "bias", shape.channels, 1, type);
  p.mean = norm_matrix(mean, "mean", shape.images, shape.groups, type);
  p.factor = norm_matrix(factor, "factor", shape.images, shape.groups, type);
  return p;
}

Execution norm_execution(NormOp op, const NormProblem& p, const Matrix& workspace, int threads,
                         uintptr_t stream) {
  check(threads >= 1, "threads: expected at least 1");
  check(workspace.dtype == DType::uint8 &&
            workspace.rows >= group_norm_workspace_bytes(op, p.shape, p.x.dtype, threads),
        "workspace: smaller than group_norm_workspace() asked for");
  Execution e;
  e.workspace = workspace.data;
  e.workspace_bytes = workspace.rows;
  e.threads = threads;
  e.stream = (void*)stream;
  return e;
}

int64_t pooled_columns(const NormShape& shape) {
  return shape.channels * shape.pooled_pixels();
}

const std::map<std::string, NormOp> kNormOps = {
    {"value", NormOp::value}, {"grad", NormOp::grad}, {"second", NormOp::second}};

int64_t norm_workspace(const std::string& op, const NormShape& shape, const std::string& dtype, int threads) {
  check(threads >= 1, "threads: expected at least 1");
  return group_norm_workspace_bytes(find(kNormOps, op, "op"), shape, find(kDTypes, dtype, "dtype"), threads);
}

void run_group_norm(const NormShape& shape, const Matrix& x, const MaybeMatrix& weight,
                    const MaybeMatrix& bias, const Matrix& mean, const Matrix& factor, const Matrix& out,
                    const Matrix& workspace, int threads, uintptr_t stream) {
  NormArguments a{};
  a.problem = make_norm(shape, x, weight, bias, mean, factor);
  a.out = norm_matrix(out, "out", shape.images, pooled_columns(shape), x.dtype);
  const Execution execution = norm_execution(NormOp::value, a.problem, workspace, threads, stream);
  const py::gil_scoped_release release;
  group_norm(a, execution);
}

void run_group_norm_grad(const NormShape& shape, const Matrix& x, const MaybeMatrix& weight,
                         const MaybeMatrix& bias, const Matrix& mean, const Matrix& factor,
                         const Matrix& grad, const MaybeMatrix& grad_x, const MaybeMatrix& grad_weight,
                         const MaybeMatrix& grad_bias, const Matrix& workspace, int threads,
                         uintptr_t stream) {
  NormGradArguments a{};
  const DType type = compute_type(x);
  a.problem = make_norm(shape, x, weight, bias, mean, factor);
  a.grad = norm_matrix(grad, "grad", shape.images, pooled_columns(shape), x.dtype);
  a.grad_x = norm_matrix(grad_x, "grad_x", x.rows, x.columns, x.dtype);
  a.grad_weight = norm_matrix(grad_weight, "grad_weight", shape.channels, 1, type);
  a.grad_bias = norm_matrix(grad_bias, "grad_bias", shape.channels, 1, type);
  const Execution execution = norm_execution(NormOp::grad, a.problem, workspace, threads, stream);
  const py::gil_scoped_release release;
  group_norm_grad(a, execution);
}

void run_group_norm_second(const NormShape& shape, const Matrix& x, const MaybeMatrix& weight,
                           const MaybeMatrix& bias, const Matrix& mean, const Matrix& factor,
                           const MaybeMatrix& grad, const MaybeMatrix& tangent_x,
                           const MaybeMatrix& tangent_weight, const MaybeMatrix& tangent_bias,
                           const MaybeMatrix& out_grad, const MaybeMatrix& out_x,
                           const MaybeMatrix& out_weight, const Matrix& workspace, int threads,
                           uintptr_t stream) {
  NormSecondArguments a{};
  const DType type = compute_type(x);
  a.problem = make_norm(shape, x, weight, bias, mean, factor);
  check(grad || (!out_x && !out_weight), "grad: expected for out_x and out_weight");
  a.grad = norm_matrix(grad, "grad", shape.images, pooled_columns(shape), x.dtype);
  a.tangent_x = norm_matrix(tangent_x, "tangent_x", x.rows, x.columns, x.dtype);
  a.tangent_weight = norm_matrix(tangent_weight, "tangent_weight", shape.channels, 1, type);
  a.tangent_bias = norm_matrix(tangent_bias, "tangent_bias", shape.channels, 1, type);
  a.out_grad = norm_matrix(out_grad, "out_grad", shape.images, pooled_columns(shape), x.dtype);
  a.out_x = norm_matrix(out_x, "out_x", x.rows, x.columns, x.dtype);
  a.out_weight = norm_matrix(out_weight, "out_weight", shape.channels, 1, type);
  const Execution execution = norm_execution(NormOp::second, a.problem, workspace, threads, stream);
  const py::gil_scoped_release release;
  group_norm_second(a, execution);
}

void bind_norm(py::module_& m) {
  using namespace py::literals;
  py::class_<NormShape>(m, "NormShape", py::module_local())
      .def(py::init(&make_norm_shape), py::kw_only(), "images"_a, "channels"_a, "groups"_a, "height"_a,
           "width"_a, "pool_height"_a, "pool_width"_a, "relu"_a, "channels_last"_a, "epsilon"_a);
  m.def("group_norm_workspace", &norm_workspace, "op"_a, "shape"_a, "dtype"_a, "threads"_a);
  m.def("group_norm", &run_group_norm, py::kw_only(), "shape"_a, "x"_a, "weight"_a, "bias"_a, "mean"_a,
        "factor"_a, "out"_a, "workspace"_a, "threads"_a, "stream"_a);
  m.def("group_norm_grad", &run_group_norm_grad, py::kw_only(), "shape"_a, "x"_a, "weight"_a, "bias"_a,
        "mean"_a, "factor"_a, "grad"_a, "grad_x"_a, "grad_weight"_a, "grad_bias"_a, "workspace"_a,
        "threads"_a, "stream"_a);
  m.def("group_norm_second", &run_group_norm_second, py::kw_only(), "shape"_a, "x"_a, "weight"_a, "bias"_a,
        "mean"_a, "factor"_a, "grad"_a, "tangent_x"_a, "tangent_weight"_a, "tangent_bias"_a, "out_grad"_a,
        "out_x"_a, "out_weight"_a, "workspace"_a, "threads"_a, "stream"_a);
}
