// The only pybind11 file: keyword arguments to plain structs, every size checked again, the GIL released
// inside. Compiled once for each backend, with -DDECOCT_MODULE=_cpu|_cuda.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <stdexcept>

#include "interface.h"

namespace py = pybind11;
using namespace decoct;

namespace {

using MaybeMatrix = std::optional<Matrix>;

template <class Value>
Value find(const std::map<std::string, Value>& table, const std::string& name, const char* what) {
  const auto entry = table.find(name);
  if (entry == table.end()) throw std::invalid_argument(std::string("unknown ") + what + " " + name);
  return entry->second;
}

const std::map<std::string, DType> kDTypes = {{"float32", DType::float32}, {"float64", DType::float64},
                                              {"float16", DType::float16}, {"bfloat16", DType::bfloat16},
                                              {"int64", DType::int64},     {"int32", DType::int32},
                                              {"uint8", DType::uint8}};
const std::map<std::string, Profile> kProfiles = {{"gaussian", Profile::gaussian},
                                                  {"laplacian", Profile::laplacian},
                                                  {"energy", Profile::energy},
                                                  {"inverse_multiquadric", Profile::inverse_multiquadric},
                                                  {"rational_quadratic", Profile::rational_quadratic},
                                                  {"polynomial", Profile::polynomial},
                                                  {"linear", Profile::linear}};
const std::map<std::string, Op> kOps = {{"sums", Op::sums},
                                        {"hvp", Op::hvp},
                                        {"matvec", Op::matvec},
                                        {"rows", Op::rows},
                                        {"sinkhorn", Op::sinkhorn}};
const std::map<std::string, Precision> kPrecisions = {
    {"highest", Precision::highest}, {"high", Precision::high}, {"medium", Precision::medium}};

Matrix make_matrix(uintptr_t pointer, int64_t rows, int64_t columns, int64_t stride,
                   const std::string& dtype) {
  if (rows < 0 || columns < 0 || (rows > 1 && stride < columns))
    throw std::invalid_argument("Matrix: rows and columns must not be negative, nor stride below columns");
  return {(void*)pointer, rows, columns, stride, find(kDTypes, dtype, "dtype")};
}

Kernel make_kernel(const std::string& profile, double parameter, double offset, int degree,
                   const std::vector<double>& scales) {
  if (scales.empty() || scales.size() > kMaxScales)
    throw std::invalid_argument("Kernel: scales must be 1 to 16 numbers");
  Kernel kernel{
      find(kProfiles, profile, "kernel profile"), parameter, offset, degree, (int)scales.size(), {}};
  std::copy(scales.begin(), scales.end(), kernel.scale);
  return kernel;
}

void check(bool fine, const std::string& message) {
  if (!fine) throw std::invalid_argument(message);
}

void check_shape(const Matrix& m, const char* name, int64_t rows, int64_t columns, DType dtype) {
  check(m.rows == rows && m.columns == columns && m.dtype == dtype,
        std::string(name) + ": expected " + std::to_string(rows) + " x " + std::to_string(columns) +
            " of the right dtype, got " + std::to_string(m.rows) + " x " + std::to_string(m.columns));
  check(m.data || rows * columns == 0, std::string(name) + ": null pointer");
}

DType compute_type(const Matrix& rows) {
  return rows.dtype == DType::float64 ? DType::float64 : DType::float32;
}

Matrix given(const MaybeMatrix& m, const char* name, int64_t rows, int64_t columns, DType dtype) {
  if (!m) return {};
  check_shape(*m, name, rows, columns, dtype);
  Matrix result = *m;
  if (!result.data) result.data = (void*)alignof(double);  // an empty argument is still a given one
  return result;
}

const int64_t* check_offsets(const Matrix& offsets, const char* name, int64_t rows) {
  check(offsets.dtype == DType::int64 && offsets.rows >= 1 && offsets.data,
        std::string(name) + ": int64 offsets expected");
  const int64_t* values = (const int64_t*)offsets.data;
  check(values[offsets.rows - 1] == rows,
        std::string(name) + ": the last of the offsets must be the number of rows");
  return values;
}

Clouds make_rows(const Matrix& x, const Matrix& y, const Matrix& x_offsets, const Matrix& y_offsets) {
  check(x.columns == y.columns && x.dtype == y.dtype, "y: expected the columns and the dtype of x");
  check(x.dtype <= DType::bfloat16, "x: expected floating-point rows");
  check(y_offsets.rows == x_offsets.rows, "y_offsets: expected as many offsets as x_offsets");
  Clouds clouds{};
  clouds.x = x;
  clouds.y = y;
  clouds.segments = x_offsets.rows - 1;
  clouds.x_offsets = check_offsets(x_offsets, "x_offsets", x.rows);
  clouds.y_offsets = check_offsets(y_offsets, "y_offsets", y.rows);
  return clouds;
}

Clouds make_clouds(const Matrix& x, const Matrix& y, const MaybeMatrix& a, const MaybeMatrix& b,
                   const Matrix& x_offsets, const Matrix& y_offsets, const Matrix& bandwidth,
                   const Kernel& kernel, const MaybeMatrix& f = {}, const MaybeMatrix& g = {}) {
  Clouds clouds = make_rows(x, y, x_offsets, y_offsets);
  clouds.a = given(a, "a", x.rows, 1, compute_type(x));
  clouds.b = given(b, "b", y.rows, 1, compute_type(x));
  check_shape(bandwidth, "bandwidth", clouds.segments, 1, DType::float64);
  clouds.bandwidth = (double*)bandwidth.data;
  clouds.kernel = kernel;
  clouds.f = given(f, "f", x.rows, 1, compute_type(x));
  clouds.g = given(g, "g", y.rows, 1, compute_type(x));
  check(!f == !g, "f, g: expected both or neither");
  check(!f || ((kernel.profile == Profile::gaussian || kernel.profile == Profile::laplacian) &&
               kernel.scales == 1),
        "f, g: expected with a gaussian or laplacian kernel of one scale");
  return clouds;
}

Execution make_execution(const Matrix& schedule, const Matrix& device_schedule, const Matrix& workspace,
                         int threads, const std::string& precision, uintptr_t stream) {
  check(schedule.dtype == DType::int32 && schedule.rows >= (int64_t)(sizeof(ScheduleHeader) / 4) &&
            schedule.data && device_schedule.rows == schedule.rows && device_schedule.data,
        "schedule: expected what plan() returned");
  check(threads >= 1, "threads: expected at least 1");
  check(workspace.dtype == DType::uint8, "workspace: expected bytes");
  return {(const int32_t*)schedule.data,
          (const int32_t*)device_schedule.data,
          workspace.data,
          workspace.rows,
          threads,
          find(kPrecisions, precision, "precision"),
          (void*)stream};
}

// The workspace must be what the plan asked for: its layout is cheap beside the op, so it is made again.
void check_execution(Op op, const Clouds& clouds, int need, int64_t columns, const Execution& e) {
  const auto* header = (const ScheduleHeader*)e.schedule;
  const Sizes sizes =
      sizes_of(op, clouds, columns, need, header->terms, e.threads, (int64_t)header->kept_mebibytes << 20);
  check(e.workspace_bytes >= workspace_bytes(sizes, e.schedule, header->words),
        "workspace: smaller than plan() asked for");
}

py::tuple run_plan(const std::string& op, const Matrix& x, const Matrix& y, const Matrix& x_offsets,
                   const Matrix& y_offsets, int need, int terms, int64_t columns, int threads,
                   int64_t cost_budget) {
  const Clouds clouds = make_rows(x, y, x_offsets, y_offsets);
  const Plan made = plan(sizes_of(find(kOps, op, "op"), clouds, columns, need, terms, threads, cost_budget));
  return py::make_tuple(py::array_t<int32_t>((py::ssize_t)made.schedule.size(), made.schedule.data()),
                        made.workspace_bytes);
}

void run_kernel_sums(const Matrix& x, const Matrix& y, const MaybeMatrix& a, const MaybeMatrix& b,
                     const Matrix& x_offsets, const Matrix& y_offsets, const Matrix& coefficients,
                     const Matrix& bandwidth, bool bandwidth_from_data, const Kernel& kernel, int need,
                     const Matrix& value, const MaybeMatrix& grad_x, const MaybeMatrix& grad_y,
                     const MaybeMatrix& grad_a, const MaybeMatrix& grad_b, const MaybeMatrix& f,
                     const MaybeMatrix& g, const Execution& execution) {
  SumsArguments arguments{};
  arguments.clouds = make_clouds(x, y, a, b, x_offsets, y_offsets, bandwidth, kernel, f, g);
  const int64_t segments = arguments.clouds.segments;
  check_shape(coefficients, "coefficients", segments, 3, DType::float64);
  check_shape(value, "value", segments, 1, DType::float64);
  arguments.coefficients = (const double*)coefficients.data;
  arguments.value = (double*)value.data;
  arguments.bandwidth_from_data = bandwidth_from_data;
  arguments.need = need;
  const DType type = compute_type(x);
  arguments.grad_x = given(grad_x, "grad_x", x.rows, x.columns, type);
  arguments.grad_y = given(grad_y, "grad_y", y.rows, y.columns, type);
  arguments.grad_a = given(grad_a, "grad_a", x.rows, 1, type);
  arguments.grad_b = given(grad_b, "grad_b", y.rows, 1, type);
  check(!(need & kNeedX) == !grad_x && !(need & kNeedY) == !grad_y && !(need & kNeedA) == !grad_a &&
            !(need & kNeedB) == !grad_b,
        "need: expected a gradient matrix for each of its bits, and no other");
  check_execution(Op::sums, arguments.clouds, need, 1, execution);
  const py::gil_scoped_release release;
  kernel_sums(arguments, execution);
}

void run_kernel_sums_hvp(const Matrix& x, const Matrix& y, const MaybeMatrix& a, const MaybeMatrix& b,
                         const Matrix& x_offsets, const Matrix& y_offsets, const Matrix& coefficients,
                         const Matrix& bandwidth, const Kernel& kernel, int need,
                         const MaybeMatrix& tangent_x, const MaybeMatrix& tangent_y,
                         const MaybeMatrix& tangent_a, const MaybeMatrix& tangent_b, const MaybeMatrix& out_x,
                         const MaybeMatrix& out_y, const MaybeMatrix& out_a, const MaybeMatrix& out_b,
                         const MaybeMatrix& f, const MaybeMatrix& g, const Execution& execution) {
  HvpArguments arguments{};
  arguments.clouds = make_clouds(x, y, a, b, x_offsets, y_offsets, bandwidth, kernel, f, g);
  check_shape(coefficients, "coefficients", arguments.clouds.segments, 3, DType::float64);
  arguments.coefficients = (const double*)coefficients.data;
  arguments.need = need;
  const DType type = compute_type(x);
  arguments.tangent_x = given(tangent_x, "tangent_x", x.rows, x.columns, type);
  arguments.tangent_y = given(tangent_y, "tangent_y", y.rows, y.columns, type);
  arguments.tangent_a = given(tangent_a, "tangent_a", x.rows, 1, type);
  arguments.tangent_b = given(tangent_b, "tangent_b", y.rows, 1, type);
  arguments.out_x = given(out_x, "out_x", x.rows, x.columns, type);
  arguments.out_y = given(out_y, "out_y", y.rows, y.columns, type);
  arguments.out_a = given(out_a, "out_a", x.rows, 1, type);
  arguments.out_b = given(out_b, "out_b", y.rows, 1, type);
  check_execution(Op::hvp, arguments.clouds, need, 1, execution);
  const py::gil_scoped_release release;
  kernel_sums_hvp(arguments, execution);
}

void run_kernel_matvec(const Matrix& x, const Matrix& y, const Matrix& v, const Matrix& x_offsets,
                       const Matrix& y_offsets, const Matrix& bandwidth, const Kernel& kernel,
                       const Matrix& out, const MaybeMatrix& f, const MaybeMatrix& g,
                       const Execution& execution) {
  MatvecArguments arguments{};
  arguments.clouds = make_clouds(x, y, {}, {}, x_offsets, y_offsets, bandwidth, kernel, f, g);
  check_shape(v, "v", y.rows, v.columns, compute_type(x));
  check_shape(out, "out", x.rows, v.columns, compute_type(x));
  arguments.v = v;
  arguments.out = out;
  check_execution(Op::matvec, arguments.clouds, 0, v.columns, execution);
  const py::gil_scoped_release release;
  kernel_matvec(arguments, execution);
}

void run_segment_sums(const Matrix& x, const MaybeMatrix& a, const Matrix& offsets, const Matrix& out,
                      const Execution& execution) {
  const std::vector<int64_t> none(std::max<int64_t>(offsets.rows, 1));
  const Matrix no_offsets{(void*)none.data(), offsets.rows, 1, 1, DType::int64};
  Clouds clouds = make_rows(x, {nullptr, 0, x.columns, x.columns, x.dtype}, offsets, no_offsets);
  clouds.a = given(a, "a", x.rows, 1, compute_type(x));
  check_shape(out, "out", clouds.segments, x.columns, compute_type(x));
  check_execution(Op::rows, clouds, 0, 1, execution);
  const py::gil_scoped_release release;
  segment_sums(clouds, out, execution);
}

void run_sinkhorn(const Matrix& x, const Matrix& y, const MaybeMatrix& a, const MaybeMatrix& b,
                  const Matrix& x_offsets, const Matrix& y_offsets, const MaybeMatrix& x_labels,
                  const MaybeMatrix& y_labels, const MaybeMatrix& label_cost, int power, double blur,
                  double scaling, double diameter, double reach_x, double reach_y, double mass,
                  double tolerance, int max_iterations, bool warm, int need, int terms, const Matrix& value,
                  const Matrix& error, const Matrix& iterations, const Matrix& f, const Matrix& g,
                  const MaybeMatrix& f_self, const MaybeMatrix& g_self, const MaybeMatrix& grad_x,
                  const MaybeMatrix& grad_y, const Execution& execution) {
  check(power == 1 || power == 2, "power: expected 1 or 2");
  check(blur > 0 && scaling > 0 && scaling < 1 && diameter >= 0 && reach_x > 0 && reach_y > 0 && mass >= 0 &&
            tolerance >= 0 && max_iterations >= 1,
        "sinkhorn: blur and reach must be positive, scaling between 0 and 1, the rest not negative");
  SinkhornArguments arguments{};
  arguments.clouds = make_rows(x, y, x_offsets, y_offsets);
  Clouds& clouds = arguments.clouds;
  const DType type = compute_type(x);
  clouds.a = given(a, "a", x.rows, 1, type);
  clouds.b = given(b, "b", y.rows, 1, type);
  clouds.kernel.profile = power == 2 ? Profile::gaussian : Profile::laplacian;
  check(!x_labels == !label_cost && !y_labels == !label_cost,
        "labels: expected on both sides, and their costs");
  const int64_t labels = label_cost ? label_cost->rows : 1;
  arguments.x_labels = given(x_labels, "x_labels", x.rows, 1, DType::int64);
  arguments.y_labels = given(y_labels, "y_labels", y.rows, 1, DType::int64);
  arguments.label_cost = given(label_cost, "label_cost", labels, labels, DType::float64);
  check_shape(value, "value", clouds.segments, 1, DType::float64);
  check_shape(error, "error", clouds.segments, 1, DType::float64);
  check_shape(iterations, "iterations", clouds.segments, 1, DType::int64);
  check_shape(f, "f", x.rows, 1, type);
  check_shape(g, "g", y.rows, 1, type);
  check(!(terms & kTermXX) == !f_self && !(terms & kTermYY) == !g_self && !(need & kNeedX) == !grad_x &&
            !(need & kNeedY) == !grad_y,
        "terms, need: expected potentials and gradients for each of their bits, and no other");
  arguments.blur = blur;
  arguments.scaling = scaling;
  arguments.diameter = diameter;
  arguments.reach_x = reach_x;
  arguments.reach_y = reach_y;
  arguments.mass = mass;
  arguments.tolerance = tolerance;
  arguments.max_iterations = max_iterations;
  arguments.warm = warm;
  arguments.need = need;
  arguments.terms = terms;
  arguments.value = (double*)value.data;
  arguments.error = (double*)error.data;
  arguments.iterations = (int64_t*)iterations.data;
  arguments.f = f;
  arguments.g = g;
  arguments.f_self = given(f_self, "f_self", x.rows, 1, type);
  arguments.g_self = given(g_self, "g_self", y.rows, 1, type);
  arguments.grad_x = given(grad_x, "grad_x", x.rows, x.columns, type);
  arguments.grad_y = given(grad_y, "grad_y", y.rows, y.columns, type);
  check_execution(Op::sinkhorn, clouds, need, labels, execution);
  const py::gil_scoped_release release;
  sinkhorn(arguments, execution);
}

void run_mean_bandwidth(const Matrix& x, const Matrix& y, const Matrix& x_offsets, const Matrix& y_offsets,
                        const Matrix& bandwidth, const Execution& execution) {
  const Clouds clouds = make_clouds(x, y, {}, {}, x_offsets, y_offsets, bandwidth, {});
  check_execution(Op::rows, clouds, 0, 1, execution);
  const py::gil_scoped_release release;
  mean_bandwidth(clouds, execution);
}

#include "barycenter_bindings.inl"
#include "characteristic_mean_bindings.inl"
#include "class_gradients_bindings.inl"
#include "gradient_distance_bindings.inl"
#include "norm_bindings.inl"
#include "per_sample_bindings.inl"
#include "random_projection_bindings.inl"

}  // namespace

PYBIND11_MODULE(DECOCT_MODULE, m, py::mod_gil_not_used()) {
  using namespace py::literals;
  // module_local: several backends are loaded at a time.
  py::class_<Matrix>(m, "Matrix", py::module_local())
      .def(py::init(&make_matrix), "pointer"_a, "rows"_a, "columns"_a, "stride"_a, "dtype"_a);
  py::class_<Kernel>(m, "Kernel", py::module_local())
      .def(py::init(&make_kernel), "profile"_a, "parameter"_a, "offset"_a, "degree"_a, "scales"_a);
  py::class_<Execution>(m, "Execution", py::module_local())
      .def(py::init(&make_execution), py::kw_only(), "schedule"_a, "device_schedule"_a, "workspace"_a,
           "threads"_a, "precision"_a, "stream"_a);
  m.def("isa", &isa_name);
  m.def("info", [] { return py::dict("isa"_a = isa_name()); });
  m.def("plan", &run_plan, py::kw_only(), "op"_a, "x"_a, "y"_a, "x_offsets"_a, "y_offsets"_a, "need"_a,
        "terms"_a, "columns"_a, "threads"_a, "cost_budget"_a = 0);
  m.def("kernel_sums", &run_kernel_sums, py::kw_only(), "x"_a, "y"_a, "a"_a, "b"_a, "x_offsets"_a,
        "y_offsets"_a, "coefficients"_a, "bandwidth"_a, "bandwidth_from_data"_a, "kernel"_a, "need"_a,
        "value"_a, "grad_x"_a, "grad_y"_a, "grad_a"_a, "grad_b"_a, "f"_a = py::none(), "g"_a = py::none(),
        "execution"_a);
  m.def("kernel_sums_hvp", &run_kernel_sums_hvp, py::kw_only(), "x"_a, "y"_a, "a"_a, "b"_a, "x_offsets"_a,
        "y_offsets"_a, "coefficients"_a, "bandwidth"_a, "kernel"_a, "need"_a, "tangent_x"_a, "tangent_y"_a,
        "tangent_a"_a, "tangent_b"_a, "out_x"_a, "out_y"_a, "out_a"_a, "out_b"_a, "f"_a = py::none(),
        "g"_a = py::none(), "execution"_a);
  m.def("kernel_matvec", &run_kernel_matvec, py::kw_only(), "x"_a, "y"_a, "v"_a, "x_offsets"_a, "y_offsets"_a,
        "bandwidth"_a, "kernel"_a, "out"_a, "f"_a = py::none(), "g"_a = py::none(), "execution"_a);
  m.def("segment_sums", &run_segment_sums, py::kw_only(), "x"_a, "a"_a, "offsets"_a, "out"_a, "execution"_a);
  m.def("sinkhorn", &run_sinkhorn, py::kw_only(), "x"_a, "y"_a, "a"_a, "b"_a, "x_offsets"_a, "y_offsets"_a,
        "x_labels"_a, "y_labels"_a, "label_cost"_a, "power"_a, "blur"_a, "scaling"_a, "diameter"_a,
        "reach_x"_a, "reach_y"_a, "mass"_a, "tolerance"_a, "max_iterations"_a, "warm"_a, "need"_a, "terms"_a,
        "value"_a, "error"_a, "iterations"_a, "f"_a, "g"_a, "f_self"_a, "g_self"_a, "grad_x"_a, "grad_y"_a,
        "execution"_a);
  m.def("mean_bandwidth", &run_mean_bandwidth, py::kw_only(), "x"_a, "y"_a, "x_offsets"_a, "y_offsets"_a,
        "bandwidth"_a, "execution"_a);
  bind_barycenter(m);
  bind_characteristic(m);
  bind_class_gradients(m);
  bind_gradient_distance(m);
  bind_norm(m);
  bind_random_projection(m);
  bind_per_sample(m);
}
