// Part of bindings.cpp: norms and inner products of per-sample gradients.

LayerPair make_pair(const Images& activations, const Images& gradients,
                    const std::array<int64_t, 9>& convolution) {
  const bool wide = activations.dtype == DType::float64 || gradients.dtype == DType::float64;
  return {activations, gradients, make_convolution(convolution), wide ? DType::float64 : DType::float32};
}

void check_pointers(const LayerPair& pair) {
  for (const Images* images : {&pair.activations, &pair.gradients})
    check(images->data || images->count * images->channels * images->height * images->width == 0,
          "Images: null pointer");
}

py::tuple run_plan_image_squares(const Images& activations, const Images& gradients,
                                 const std::array<int64_t, 9>& convolution, int threads) {
  return planned(plan_image_squares(make_pair(activations, gradients, convolution), threads));
}

void run_image_squares(const Images& activations, const Images& gradients,
                       const std::array<int64_t, 9>& convolution, const Matrix& weight,
                       const MaybeMatrix& bias, const Execution& execution) {
  ImageSquaresArguments arguments{};
  arguments.pair = make_pair(activations, gradients, convolution);
  check_plan(plan_image_squares(arguments.pair, execution.threads), execution);
  check_pointers(arguments.pair);
  check_shape(weight, "weight", activations.count, 1, arguments.pair.type);
  arguments.weight = weight;
  arguments.bias = given(bias, "bias", activations.count, 1, arguments.pair.type);
  const py::gil_scoped_release release;
  image_squares(arguments, execution);
}

ImageGramArguments make_gram(const Images& activations, const Images& gradients,
                             const std::optional<Images>& other_activations,
                             const std::optional<Images>& other_gradients,
                             const std::array<int64_t, 9>& convolution, bool bias) {
  check(!other_activations == !other_gradients, "other: expected activations and gradients, or neither");
  ImageGramArguments arguments{};
  arguments.x = make_pair(activations, gradients, convolution);
  arguments.self = !other_activations;
  if (other_activations) {
    arguments.y = make_pair(*other_activations, *other_gradients, convolution);
    // Products of two types are formed in the wider one.
    if (arguments.x.type == DType::float64 || arguments.y.type == DType::float64)
      arguments.x.type = arguments.y.type = DType::float64;
  }
  arguments.bias = bias;
  return arguments;
}

py::tuple run_plan_image_gram(const Images& activations, const Images& gradients,
                              const std::optional<Images>& other_activations,
                              const std::optional<Images>& other_gradients,
                              const std::array<int64_t, 9>& convolution, bool bias, int threads) {
  return planned(plan_image_gram(
      make_gram(activations, gradients, other_activations, other_gradients, convolution, bias), threads));
}

void run_image_gram(const Images& activations, const Images& gradients,
                    const std::optional<Images>& other_activations,
                    const std::optional<Images>& other_gradients, const std::array<int64_t, 9>& convolution,
                    bool bias, const Matrix& gram, const Execution& execution) {
  ImageGramArguments arguments =
      make_gram(activations, gradients, other_activations, other_gradients, convolution, bias);
  check_plan(plan_image_gram(arguments, execution.threads), execution);
  check_pointers(arguments.x);
  if (!arguments.self) check_pointers(arguments.y);
  const int64_t columns = arguments.self ? activations.count : arguments.y.activations.count;
  check_shape(gram, "gram", activations.count, columns, arguments.x.type);
  arguments.gram = gram;
  const py::gil_scoped_release release;
  image_gram(arguments, execution);
}

void bind_per_sample(py::module_& m) {
  using namespace py::literals;
  m.def("plan_image_squares", &run_plan_image_squares, py::kw_only(), "activations"_a, "gradients"_a,
        "convolution"_a, "threads"_a);
  m.def("image_squares", &run_image_squares, py::kw_only(), "activations"_a, "gradients"_a, "convolution"_a,
        "weight"_a, "bias"_a, "execution"_a);
  m.def("plan_image_gram", &run_plan_image_gram, py::kw_only(), "activations"_a, "gradients"_a,
        "other_activations"_a, "other_gradients"_a, "convolution"_a, "bias"_a, "threads"_a);
  m.def("image_gram", &run_image_gram, py::kw_only(), "activations"_a, "gradients"_a, "other_activations"_a,
        "other_gradients"_a, "convolution"_a, "bias"_a, "gram"_a, "execution"_a);
}
