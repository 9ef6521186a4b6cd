// out_i = sum_j k(x_i, y_j) v_j in each segment, the kernel matrix never stored: a score tile, its profile in
// place, and a second product with the tile's rows of v. Operations: 2 (D + E) and one exp a pair. Row blocks
// are independent.
#pragma once
#include "sums.inl"

namespace decoct {
namespace DECOCT_ISA {

template <class T>
using EpilogueFunction = double (*)(const Block<T>&, const TileScratch<T>&, int64_t, int64_t, int64_t,
                                    int64_t);

template <class T>
static EpilogueFunction<T> kernel_epilogue(const Kernel& kernel, bool plan) {
  if (plan)
    return kernel.profile == Profile::gaussian
               ? epilogue<T, Profile::gaussian, true, Mode::kernel, false, true>
               : epilogue<T, Profile::laplacian, true, Mode::kernel, false, true>;
  switch (kernel.profile) {
    case Profile::gaussian:
      return epilogue<T, Profile::gaussian, false, Mode::kernel, false>;
    case Profile::laplacian:
      return epilogue<T, Profile::laplacian, false, Mode::kernel, false>;
    case Profile::energy:
      return epilogue<T, Profile::energy, false, Mode::kernel, false>;
    case Profile::inverse_multiquadric:
      return epilogue<T, Profile::inverse_multiquadric, false, Mode::kernel, false>;
    case Profile::rational_quadratic:
      return epilogue<T, Profile::rational_quadratic, false, Mode::kernel, false>;
    case Profile::polynomial:
      return epilogue<T, Profile::polynomial, false, Mode::kernel, false>;
    default:
      return epilogue<T, Profile::linear, false, Mode::kernel, false>;
  }
}

template <class T>
struct MatvecRun {
  const MatvecArguments* arguments;
  State<T> state;
  T** values;  // of each segment: its rows of v, padded to whole vectors
  int64_t stride;

  void pack_values(const Task& task) const {
    const Matrix& v = arguments->v;
    const int64_t first = state.clouds->y_offsets[task.segment];
    for (int64_t j = task.row_begin; j < task.row_end; ++j) {
      T* out = values[task.segment] + j * stride;
      for (int64_t e = 0; e < stride; ++e)
        out[e] = e < v.columns ? ((const T*)v.data)[(first + j) * v.stride + e] : T(0);
    }
  }

  void run_rows(const Task& task, int worker) const {
    Arena arena{state.scratch + worker * state.scratch_bytes};
    const TileScratch<T> scratch = tile_layout<T>(arena);
    T* sums = arena.take<T>(kTileHeight * stride);
    const Segment<T>& s = state.segments[task.segment];
    const Kernel& kernel = state.clouds->kernel;
    const Matrix& out = arguments->out;
    const int64_t first = state.clouds->x_offsets[task.segment];
    const T unit = kernel.profile == Profile::energy ? (T)s.spread : T(1);
    const auto to_kernel = kernel_epilogue<T>(kernel, state.clouds->f.data);
    Block<T> b{};
    b.rows = &s.x;
    b.cols = &s.y;
    b.j1 = s.m;
    b.constants = &s.constants;
    b.row_bias = s.x.bias;
    b.col_bias = s.y.bias;
    for (int64_t i0 = task.row_begin; i0 < task.row_end; i0 += kTileHeight) {
      const int64_t i1 = i0 + kTileHeight < task.row_end ? i0 + kTileHeight : task.row_end;
      std::memset(sums, 0, kTileHeight * stride * sizeof(T));
      for (int64_t j0 = 0; j0 < s.m; j0 += kTileColumns<T>) {
        const int64_t j1 = j0 + kTileColumns<T> < s.m ? j0 + kTileColumns<T> : s.m;
        scores(s.x.points, s.x.stride, s.x.dim, s.y.panels, scratch.tile, i0, i1, j0, j1);
        to_kernel(b, scratch, i0, i1, j0, j1);
        add_product(i1 - i0, j1 - j0, scratch.tile, kTileColumns<T>, 1, values[task.segment] + j0 * stride,
                    stride, sums);
      }
      for (int64_t i = i0; i < i1; ++i)
        for (int64_t e = 0; e < out.columns; ++e)
          ((T*)out.data)[(first + i) * out.stride + e] = unit * sums[(i - i0) * stride + e];
    }
  }

  void operator()(int64_t index, int worker) {
    const Task& task = state.schedule.tasks[index];
    if (task.kind == TaskKind::block) return run_rows(task, worker);
    if (task.kind == TaskKind::pack && !(task.flags & kOnX)) pack_values(task);
    run_preparation(state, task);
  }
};

template <class T>
static void matvec_layout(MatvecRun<T>& run, Arena& arena, const Sizes& sizes, int64_t chunks,
                          int64_t tasks) {
  run.stride = round_up(sizes.columns, width<T>);
  run.values = arena.take<T*>(sizes.segments);
  state_layout(run.state, arena, sizes, chunks, tasks,
               round_up(kTileHeight * run.stride * (int64_t)sizeof(T), 64),
               [&run](int64_t c, const SegmentRule& rule, Arena& a) {
                 T* values = a.take<T>(rule.m * run.stride);
                 if (a.base) run.values[c] = values;
               });
}

template <class T>
static void run_matvec(const MatvecArguments& a, const Sizes& sizes, const Execution& e) {
  MatvecRun<T> run{};
  run.arguments = &a;
  run.state.sizes = sizes;
  run.state.clouds = &a.clouds;
  run.state.schedule = read_schedule(e);
  Arena arena{(char*)e.workspace};
  matvec_layout(run, arena, sizes, run.state.schedule.header->chunks, run.state.schedule.header->tasks);
  attach_split(run.state);
  run_rounds(run.state.schedule, e.threads, run);
  for (int64_t c = 0; c < sizes.segments; ++c)
    if (segment_rule(sizes, c).empty) clear_rows<T>(a.out, a.clouds.x_offsets, c);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
