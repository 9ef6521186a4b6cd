// What the ops share on the host: a call's schedule, its workspace, and the problem as the kernels see it.
#pragma once
#include <algorithm>

#include "arithmetic.cuh"
#include "launch.h"

namespace decoct::cuda {

inline int64_t element_bytes(DType type) {
  return type == DType::float64 ? 8 : type == DType::float32 ? 4 : 2;
}

inline Source source_of(const Matrix& m) {
  const int64_t quad = std::min<int64_t>(4 * element_bytes(m.dtype), 16);
  const bool aligned = (uintptr_t)m.data % quad == 0 && m.stride % 4 == 0;
  return {m.data, m.stride, m.dtype, aligned};
}

// One call: its schedule, its workspace, and the problem as the kernels see it.
template <class T>
struct Call {
  Sizes sizes;
  ScheduleView host;
  Problem<T> problem{};
  const Execution& execution;
  WorkspaceLayout layout;
  const Chunk* finish_chunks;

  Call(Op op, const Clouds& clouds, int64_t columns, const Execution& e) : execution(e) {
    const Header& header = *(const Header*)e.schedule;
    sizes = sizes_of(op, clouds, columns, header.common.need, header.common.terms, e.threads);
    host = view_schedule(e.schedule, header, sizes.segments);
    layout = workspace_layout(sizes, header);
    set_schedule(view_schedule(e.device_schedule, header, sizes.segments));
    set_workspace();
    problem.x.source = source_of(clouds.x);
    problem.y.source = source_of(clouds.y);
    problem.x.source_weights = (const T*)clouds.a.data;
    problem.y.source_weights = (const T*)clouds.b.data;
    problem.x.weight_stride = problem.y.weight_stride = 1;
    set_potentials(problem.x, clouds.f);
    set_potentials(problem.y, clouds.g);
    problem.plan = clouds.f.data != nullptr;
    problem.bias_unit = 1.4426950408889634074;  // potentials are exponents of e
    problem.bandwidth = clouds.bandwidth;
    problem.kernel = clouds.kernel;
    problem.dim = (int32_t)sizes.dim;
    problem.stride = (int32_t)layout.stride;
    problem.slab_stride = (int32_t)layout.slab_stride;
    problem.precision = (int32_t)(sizeof(T) == 8 ? Precision::highest : e.precision);
    problem.packed_bfloat16 =
        problem.precision == (int32_t)Precision::medium && header.path != (int32_t)Path::small;
  }

  template <class V>
  V* at(int64_t offset) const {
    return (V*)((char*)execution.workspace + offset);
  }

  void set_schedule(const ScheduleView& device) {
    problem.segments = device.segments;
    problem.tasks = device.tasks;
    problem.chunks = device.chunks;
    finish_chunks = device.chunks + host.header->common.chunks;
  }

  void set_side(Side<T>& side, int index) const {
    side.points = at<T>(layout.points[index]);
    side.norms = at<T>(layout.norms[index]);
    side.weights = at<T>(layout.weights[index]);
    if (sizes.op != Op::hvp) return;
    side.tangents = at<T>(layout.tangents[index]);
    side.dots = at<T>(layout.dots[index]);
    side.tangent_weights = at<T>(layout.tangent_weights[index]);
  }

  static void set_potentials(Side<T>& side, const Matrix& potentials) {
    for (int term = 0; term < 2; ++term)
      side.row_bias[term] = side.column_bias[term] = (const T*)potentials.data;
  }

  void set_workspace() {
    problem.tickets = at<int32_t>(layout.tickets);
    problem.states = at<SegmentState<T>>(layout.states);
    problem.centres = at<T>(layout.centres);
    problem.chunk_norms = at<double>(layout.chunk_norms);
    problem.chunk_sums = at<double>(layout.chunk_sums);
    if (sizes.op == Op::rows) return;
    problem.slabs = at<T>(layout.slabs);
    problem.sums = at<double>(layout.sums);
    problem.partials = at<double>(layout.partials);
    problem.scratch = at<char>(layout.scratch);
    problem.scratch_stride = scratch_bytes(sizes, (Shape)host.header->scratch_shape);
    set_side(problem.x, 0);
    set_side(problem.y, 1);
    if (sizes.op == Op::hvp) problem.tangent_centres = at<T>(layout.tangent_centres);
  }

  void prepare() const {
    fill_zero(execution.workspace, layout.zeroed, execution.stream);
    RowKernels<T>::anchor(problem, sizes.segments, execution.stream);
    RowKernels<T>::pack(problem, host.header->common.chunks, execution.stream);
  }

  template <class A>
  void run_rounds_as() const {
    const int64_t columns = sizes.op == Op::matvec && sizes.columns == 1 ? 0 : layout.slab_stride;
    for (int32_t r = 0; r < host.header->common.rounds; ++r) {
      const RoundLaunch<T> launch{problem, host.rounds[r], execution.stream};
      switch (host.rounds[r].stage) {
        case Stage::score:
          // Only rounds that a product follows leave anything in scratch.
          if (sizes.op == Op::hvp)
            PairKernels<A>::hvp(launch);
          else
            PairKernels<A>::score(
                launch, r + 1 < host.header->common.rounds && host.rounds[r + 1].stage == Stage::product);
          break;
        case Stage::product:
          PairKernels<A>::product(launch, (int)columns);
          break;
        case Stage::fused:
          PairKernels<A>::fused(launch);
          break;
        case Stage::small:
          SmallKernels<T>::launch(launch);
          break;
      }
    }
  }

  void run_rounds() const {
    if constexpr (sizeof(T) == 8) {
      run_rounds_as<Scalar<double>>();
    } else {
      switch (execution.precision) {
        case Precision::highest:
          return run_rounds_as<Tf32x3>();
        case Precision::high:
          return run_rounds_as<Tf32>();
        default:
          return run_rounds_as<Bfloat16>();
      }
    }
  }

  void finish(double* value, const Matrix& x, const Matrix& y, const Matrix& a, const Matrix& b,
              int64_t columns) const {
    Results<T> out{};
    out.value = value;
    out.x_points = (T*)x.data;
    out.y_points = (T*)y.data;
    out.x_stride = x.stride;
    out.y_stride = y.stride;
    out.x_weights = (T*)a.data;
    out.y_weights = (T*)b.data;
    out.weight_stride = a.data && sizes.op == Op::matvec ? a.stride : 1;
    out.columns = (int32_t)columns;
    out.chunks = host.header->finish_chunks;
    Problem<T> end = problem;
    end.chunks = finish_chunks;
    RowKernels<T>::finish(end, out, value ? sizes.segments : 0, execution.stream);
  }
};

}  // namespace decoct::cuda
