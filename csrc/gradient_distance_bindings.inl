// Part of bindings.cpp: distances of lists of gradients.

const std::map<std::string, GradientMetric> kMetrics = {{"row_cosine", GradientMetric::row_cosine},
                                                        {"cosine", GradientMetric::cosine},
                                                        {"cosine_l2", GradientMetric::cosine_l2},
                                                        {"sse", GradientMetric::sse},
                                                        {"l1", GradientMetric::l1},
                                                        {"l1_mean", GradientMetric::l1_mean}};
const std::map<std::string, EpsilonForm> kEpsilonForms = {{"product", EpsilonForm::product},
                                                          {"clamp", EpsilonForm::clamp}};
using GradientShapes = std::vector<std::array<int64_t, 3>>;

GradientLayout make_gradient_layout(const std::string& metric, const std::string& epsilon_form,
                                    double epsilon, const std::string& dtype, int64_t classes,
                                    const GradientShapes& shapes) {
  check(epsilon > 0, "epsilon: expected a positive number");
  std::vector<GradientShape> made;
  for (const auto& shape : shapes) made.push_back({shape[0], shape[1], shape[2]});
  return gradient_layout(find(kMetrics, metric, "metric"), find(kEpsilonForms, epsilon_form, "epsilon_form"),
                         epsilon, find(kDTypes, dtype, "dtype"), classes, made);
}

// Lists of gradients are addresses, one for each of the layout's tensors: as matrices they would take longer
// to make than small ones take to compare.
void run_gradient_distance(const GradientLayout& layout, const std::vector<uintptr_t>& real,
                           const std::vector<uintptr_t>& synthetic, const MaybeMatrix& value,
                           const MaybeMatrix& tangent_real, const MaybeMatrix& tangent_synthetic,
                           const MaybeMatrix& out_real, const MaybeMatrix& out_synthetic,
                           const Matrix& workspace, int threads, uintptr_t stream) {
  check(real.size() == layout.parts.size() && synthetic.size() == layout.parts.size(),
        "real, synthetic: expected an address for each tensor of the layout");
  const int64_t all = layout.classes * layout.elements;
  for (const auto* list : {&real, &synthetic})
    for (const uintptr_t address : *list) check(address || all == 0, "real, synthetic: null pointer");
  const DType type = layout.dtype == DType::float64 ? DType::float64 : DType::float32;
  const auto flat = [&](const MaybeMatrix& m, const char* name) { return given(m, name, all, 1, type).data; };
  GradientArguments arguments{};
  arguments.layout = &layout;
  arguments.parts = layout.parts.data();
  arguments.part_count = (int64_t)layout.parts.size();
  arguments.real = (const void* const*)real.data();
  arguments.synthetic = (const void* const*)synthetic.data();
  arguments.value = given(value, "value", layout.classes, 1, type).data;
  arguments.tangent_real = flat(tangent_real, "tangent_real");
  arguments.tangent_synthetic = flat(tangent_synthetic, "tangent_synthetic");
  check(!tangent_real == !tangent_synthetic && !tangent_real == !!value,
        "value, tangents: expected a value, or the tangents of both sides");
  arguments.out_real = flat(out_real, "out_real");
  arguments.out_synthetic = flat(out_synthetic, "out_synthetic");
  check(workspace.dtype == DType::uint8 && workspace.rows >= layout.workspace_bytes() &&
            (workspace.data || layout.workspace_bytes() == 0),
        "workspace: smaller than the layout asks for");
  check(threads >= 1, "threads: expected at least 1");
  Execution execution;
  execution.workspace = workspace.data;
  execution.workspace_bytes = workspace.rows;
  execution.threads = threads;
  execution.stream = (void*)stream;
  const py::gil_scoped_release release;
  gradient_distance(arguments, execution);
}

void bind_gradient_distance(py::module_& m) {
  using namespace py::literals;
  py::class_<GradientLayout>(m, "GradientLayout", py::module_local())
      .def(py::init(&make_gradient_layout), py::kw_only(), "metric"_a, "epsilon_form"_a, "epsilon"_a,
           "dtype"_a, "classes"_a, "shapes"_a)
      .def_property_readonly("workspace_bytes", &GradientLayout::workspace_bytes);
  m.def("gradient_distance", &run_gradient_distance, "layout"_a, "real"_a, "synthetic"_a, "value"_a,
        "tangent_real"_a, "tangent_synthetic"_a, "out_real"_a, "out_synthetic"_a, "workspace"_a, "threads"_a,
        "stream"_a);
}
