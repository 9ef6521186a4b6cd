// How characteristic means are cut into panels, and their launches.
#include "characteristic_mean.cuh"

#include <algorithm>

namespace decoct {
namespace cuda {
namespace {

// Carves arrays out of the workspace; with base == nullptr it only counts.
struct Carver {
  char* base;
  int64_t used = 0;
  template <class V>
  V* take(bool wanted, int64_t count) {
    if (!wanted) return nullptr;
    V* array = base ? (V*)(base + used) : nullptr;
    used += ceil_div(count * (int64_t)sizeof(V), 256) * 256;
    return array;
  }
};

template <class T>
int64_t set_workspace(CharacteristicView<T>& v, const CharacteristicArguments& a, char* base) {
  Carver carver{base};
  const int64_t rows = std::min<int64_t>(a.rows(), kPanelRows);
  const int64_t columns = std::min<int64_t>(a.columns(), kPanelColumns);
  const bool over_rows = a.cosine.data, over_columns = a.out_weights.data;
  constexpr int half = tile_rows(pair_shape<T>) / kHalves, width = tile_columns(pair_shape<T>);
  v.weights = carver.take<T>(a.op != CharacteristicOp::value, rows * kPanelColumns);
  v.tangent_weights = carver.take<T>(a.op == CharacteristicOp::second, rows * kPanelColumns);
  v.sums = carver.take<double>(over_rows, a.segments * 2 * kPanelColumns);
  v.tile_sums = carver.take<double>(over_rows, ceil_div(rows, half) * 4 * kPanelColumns);
  v.row_sums = carver.take<double>(over_columns, a.rows());
  v.tile_row_sums = carver.take<double>(over_columns, ceil_div(columns, width) * kPanelRows);
  return carver.used;
}

Source rows_as_source(const Matrix& m) {
  return {m.data, m.stride, m.dtype, 0};
}

template <class T>
CharacteristicView<T> view_of(const CharacteristicArguments& a, const Execution& e) {
  CharacteristicView<T> v{};
  v.x = rows_as_source(a.x);
  v.f = rows_as_source(a.frequencies);
  v.x_tangents = rows_as_source(a.tangent_x);
  v.f_tangents = rows_as_source(a.tangent_frequencies);
  v.w = (const T*)a.weights.data;
  v.w_stride = a.weights.stride;
  v.h = (const T*)a.tangent_weights.data;
  v.h_stride = a.tangent_weights.stride;
  v.bar_cosine = (const T*)a.bar_cosine.data;
  v.bar_cosine_stride = a.bar_cosine.stride;
  v.bar_sine = (const T*)a.bar_sine.data;
  v.bar_sine_stride = a.bar_sine.stride;
  v.offsets = (const int64_t*)(e.device_schedule + sizeof(ScheduleHeader) / 4);
  v.cosine = (T*)a.cosine.data;
  v.cosine_stride = a.cosine.stride;
  v.sine = (T*)a.sine.data;
  v.sine_stride = a.sine.stride;
  v.out_x = (T*)a.out_x.data;
  v.out_f = (T*)a.out_frequencies.data;
  v.out_w = (T*)a.out_weights.data;
  v.out_w_stride = a.out_weights.stride;
  v.products = (T*)a.products.data;
  v.segments = (int32_t)a.segments;
  v.dim = (int32_t)a.dim();
  v.rows = (int32_t)a.rows();
  v.columns = (int32_t)a.columns();
  set_workspace(v, a, (char*)e.workspace);
  return v;
}

template <class A, CharacteristicOp Kind>
void run_panel(const CharacteristicView<typename A::T>& v, void* stream) {
  using T = typename A::T;
  using Tile = typename PairProduct<A>::Tile;
  const int64_t of_rows = ceil_div(v.panel_rows, Tile::kRows);
  const int64_t of_columns = ceil_div(v.panel_columns, Tile::kColumns);
  constexpr int shared = pair_shared<A>(Kind == CharacteristicOp::second ? 2 : 1);
  launch(characteristic_kernel<A, Kind>, {of_rows * of_columns, kThreads, shared, stream}, v);
  if constexpr (Kind != CharacteristicOp::value) {
    const int64_t chunks = ceil_div(v.dim, Tile::kColumns);
    const Launch by_x{of_rows * chunks, kThreads, pair_shared<A>(0), stream};
    const Launch by_f{ceil_div(v.panel_columns, Tile::kRows) * chunks, kThreads, pair_shared<A>(0), stream};
    if (v.out_x) launch(characteristic_product_kernel<A>, by_x, v, 1);
    if (v.out_f) launch(characteristic_product_kernel<A>, by_f, v, 0);
  }
  const int64_t columns = v.sums ? ceil_div(v.panel_columns, kThreads) : 0;
  const int64_t rows = v.row_sums ? ceil_div(v.panel_rows, kThreads) : 0;
  launch(characteristic_sums_kernel<T>, {columns + rows, kThreads, 0, stream}, v, (int)columns);
}

template <class A, CharacteristicOp Kind>
void run_as(const CharacteristicArguments& a, const Execution& e) {
  using T = typename A::T;
  CharacteristicView<T> v = view_of<T>(a, e);
  const int64_t element = sizeof(T);
  if (v.out_x) fill_zero(v.out_x, a.rows() * a.dim() * element, e.stream);
  if (v.out_f) fill_zero(v.out_f, a.columns() * a.dim() * element, e.stream);
  if (v.row_sums) fill_zero(v.row_sums, a.rows() * 8, e.stream);
  for (int64_t j = 0; j < a.columns(); j += kPanelColumns) {
    v.j = (int32_t)j;
    v.panel_columns = (int32_t)std::min<int64_t>(a.columns() - j, kPanelColumns);
    if (v.sums) fill_zero(v.sums, a.segments * 2 * kPanelColumns * 8, e.stream);
    for (int64_t i = 0; i < a.rows() || i == 0; i += kPanelRows) {  // without rows once, for the results
      v.i = (int32_t)i;
      v.panel_rows = (int32_t)std::min<int64_t>(a.rows() - i, kPanelRows);
      run_panel<A, Kind>(v, e.stream);
    }
  }
  // Without frequencies nothing has written the derivative by the weights.
  if (v.out_w && a.columns() == 0) fill_zero(v.out_w, a.rows() * element, e.stream);
}

template <class A>
void run(const CharacteristicArguments& a, const Execution& e) {
  switch (a.op) {
    case CharacteristicOp::value:
      return run_as<A, CharacteristicOp::value>(a, e);
    case CharacteristicOp::grad:
      return run_as<A, CharacteristicOp::grad>(a, e);
    default:
      return run_as<A, CharacteristicOp::second>(a, e);
  }
}

}  // namespace
}  // namespace cuda

Plan plan_characteristic(const CharacteristicArguments& a, int threads) {
  Plan plan;
  plan.schedule = characteristic_schedule(a, threads);
  cuda::CharacteristicView<double> wide{};
  cuda::CharacteristicView<float> narrow{};
  plan.workspace_bytes = a.type() == DType::float64 ? cuda::set_workspace(wide, a, nullptr)
                                                    : cuda::set_workspace(narrow, a, nullptr);
  return plan;
}

void characteristic(const CharacteristicArguments& a, const Execution& e) {
  if (a.type() == DType::float64) return cuda::run<cuda::Scalar<double>>(a, e);
  switch (e.precision) {
    case Precision::highest:
      return cuda::run<cuda::Tf32x3>(a, e);
    case Precision::high:
      return cuda::run<cuda::Tf32>(a, e);
    default:
      return cuda::run<cuda::Bfloat16>(a, e);
  }
}

}  // namespace decoct
