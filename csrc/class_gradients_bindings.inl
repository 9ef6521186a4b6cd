// Part of bindings.cpp: products of activations and output gradients.

Images make_images(uintptr_t pointer, const std::array<int64_t, 4>& sizes,
                   const std::array<int64_t, 4>& strides, const std::string& dtype) {
  Images images{(void*)pointer, sizes[0], sizes[1], sizes[2], sizes[3], {}, find(kDTypes, dtype, "dtype")};
  std::copy(strides.begin(), strides.end(), images.strides);
  check(images.dtype <= DType::bfloat16, "Images: expected floating-point numbers");
  return images;
}

Convolution make_convolution(const std::array<int64_t, 9>& numbers) {
  Convolution c{};
  for (int k = 0; k < 2; ++k) {
    c.kernel[k] = numbers[k];
    c.stride[k] = numbers[2 + k];
    c.padding[k] = numbers[4 + k];
    c.dilation[k] = numbers[6 + k];
  }
  c.groups = numbers[8];
  return c;
}

// A plan for Python, and the check that an execution is one of it.
py::tuple planned(const Plan& made) {
  return py::make_tuple(py::array_t<int32_t>((py::ssize_t)made.schedule.size(), made.schedule.data()),
                        made.workspace_bytes);
}

void check_plan(const Plan& made, const Execution& execution) {
  const auto* header = (const ScheduleHeader*)execution.schedule;
  check(header->words == (int64_t)made.schedule.size() &&
            std::equal(made.schedule.begin(), made.schedule.end(), execution.schedule),
        "schedule: made for another call");
  check(execution.workspace_bytes >= made.workspace_bytes, "workspace: smaller than plan() asked for");
}

SegmentOuterArguments make_segment_outer(const Images& activations, const Images& gradients,
                                         const Matrix& offsets, const std::array<int64_t, 9>& convolution) {
  SegmentOuterArguments arguments{};
  arguments.activations = activations;
  arguments.gradients = gradients;
  arguments.convolution = make_convolution(convolution);
  arguments.segments = offsets.rows - 1;
  arguments.offsets = check_offsets(offsets, "offsets", activations.count);
  const bool wide = activations.dtype == DType::float64 || gradients.dtype == DType::float64;
  arguments.type = wide ? DType::float64 : DType::float32;
  return arguments;
}

py::tuple run_plan_segment_outer(const Images& activations, const Images& gradients, const Matrix& offsets,
                                 const std::array<int64_t, 9>& convolution, int threads) {
  return planned(
      plan_segment_outer(make_segment_outer(activations, gradients, offsets, convolution), threads));
}

void run_segment_outer(const Images& activations, const Images& gradients, const MaybeMatrix& weights,
                       const Matrix& offsets, const std::array<int64_t, 9>& convolution, const Matrix& weight,
                       const MaybeMatrix& bias, const Execution& execution) {
  SegmentOuterArguments arguments = make_segment_outer(activations, gradients, offsets, convolution);
  check_plan(plan_segment_outer(arguments, execution.threads), execution);
  const Convolution& c = arguments.convolution;
  const int64_t patch = activations.channels / c.groups * c.kernel[0] * c.kernel[1];
  for (const Images* images : {&activations, &gradients})
    check(images->data || images->count * images->channels * images->height * images->width == 0,
          "Images: null pointer");
  arguments.weights = given(weights, "weights", activations.count, 1, arguments.type);
  check_shape(weight, "weight", arguments.segments, gradients.channels * patch, arguments.type);
  arguments.weight = weight;
  arguments.bias = given(bias, "bias", arguments.segments, gradients.channels, arguments.type);
  const py::gil_scoped_release release;
  segment_outer(arguments, execution);
}

void bind_class_gradients(py::module_& m) {
  using namespace py::literals;
  py::class_<Images>(m, "Images", py::module_local())
      .def(py::init(&make_images), "pointer"_a, "sizes"_a, "strides"_a, "dtype"_a);
  m.def("plan_segment_outer", &run_plan_segment_outer, py::kw_only(), "activations"_a, "gradients"_a,
        "offsets"_a, "convolution"_a, "threads"_a);
  m.def("segment_outer", &run_segment_outer, py::kw_only(), "activations"_a, "gradients"_a, "weights"_a,
        "offsets"_a, "convolution"_a, "weight"_a, "bias"_a, "execution"_a);
}
