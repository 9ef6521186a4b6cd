// Weighted kernel sums and their first derivatives, for every segment in one call:
//   value_c = c0 sum a_i a_k k(x_i, x_k) + c1 sum a_i b_j k(x_i, y_j) + c2 sum b_j b_l k(y_j, y_l)
//
// Operations: 2 D pairs (1 + differentiated sides) and one exp (or root) a pair; a symmetric term does half
// its pairs. Bytes: the rows three times, O(N + M) scratch; at D >= 16 the products decide, below it the
// exponentials. Small segments run from start to end in one task with scratch that stays in cache (stream.inl
// for those whose x is only compared with y); large ones go through rounds.
#pragma once
#include "segment_ops.inl"
#include "stream.inl"

namespace decoct {
namespace DECOCT_ISA {

template <class T>
struct SumsRun {
  const SumsArguments* arguments;
  State<T> state;

  TileScratch<T> tiles(int worker) const {
    Arena arena{state.scratch + worker * state.scratch_bytes};
    return tile_layout<T>(arena);
  }

  double run_one(Segment<T>& s, int64_t c, bool rows_x, bool columns_x, bool row_side, bool column_side,
                 int64_t i0, int64_t i1, int64_t j0, int64_t j1, int slab,
                 const TileScratch<T>& scratch) const {
    const Kernel& kernel = state.clouds->kernel;
    const Cloud<T>&rows = rows_x ? s.x : s.y, &cols = columns_x ? s.x : s.y;
    const bool symmetric = rows_x == columns_x;
    const int term = !symmetric ? 1 : rows_x ? 0 : 2;
    double coefficient = arguments->coefficients[3 * c + term];
    if (coefficient == 0) return 0;
    if (kernel.profile == Profile::energy) coefficient *= s.spread;
    Block<T> b{};
    b.rows = &rows;
    b.cols = &cols;
    b.i0 = i0;
    b.i1 = i1;
    b.j0 = j0;
    b.j1 = j1;
    b.row_side = row_side && rows.wants_grad;
    b.col_side = column_side && cols.wants_grad;
    b.kernel_scale = coefficient * (symmetric ? 2 : 1);
    b.weight_scale = (T)b.kernel_scale;
    b.constants = &s.constants;
    b.row_grad = b.row_side ? rows.grad + slab * rows.rows * rows.stride : nullptr;
    b.row_wsum = b.row_side ? rows.wsum + slab * rows.rows : nullptr;
    b.row_ksum = row_side && rows.wants_weight ? rows.ksum + slab * rows.rows : nullptr;
    b.col_grad = b.col_side ? cols.grad + slab * cols.rows * cols.stride : nullptr;
    b.col_wsum = b.col_side ? cols.wsum + slab * cols.rows : nullptr;
    b.col_ksum = column_side && cols.wants_weight ? cols.ksum + slab * cols.rows : nullptr;
    b.row_bias = rows.bias;
    b.col_bias = cols.bias;
    const bool gradient = b.row_side || b.col_side, plan = state.clouds->f.data;
    const auto block = plan ? choose_plan_block<T>(kernel.profile, gradient, column_side)
                            : choose_block<T>(kernel, gradient, column_side);
    const double total = block(b, scratch);
    return coefficient * (symmetric && i0 != j0 ? 2 : 1) * total;
  }

  double run_block_task(const Task& task, int worker) const {
    return run_one(state.segments[task.segment], task.segment, task.flags & kOnX, task.flags & kColumnsX,
                   task.flags & kRowSide, task.flags & kColumnSide, task.row_begin, task.row_end,
                   task.col_begin, task.col_end, task.slot, tiles(worker));
  }

  // One strip of a symmetric term: the square on the diagonal, then what lies to its right.
  double run_strip(Segment<T>& s, int64_t c, bool x, bool wanted, int64_t begin, int64_t height, int slab,
                   const TileScratch<T>& scratch) const {
    const int64_t rows = x ? s.n : s.m, end = begin + height < rows ? begin + height : rows;
    double total = run_one(s, c, x, x, wanted, false, begin, end, begin, end, slab, scratch);
    if (end < rows) total += run_one(s, c, x, x, wanted, wanted, begin, end, end, rows, slab, scratch);
    return total;
  }

  double run_strips(const Task& task, int worker) const {
    Segment<T>& s = state.segments[task.segment];
    const bool x = task.flags & kOnX;
    const int64_t strips = ((x ? s.n : s.m) + kBlockUnit - 1) / kBlockUnit;
    double total = 0;
    for (int64_t i = 0; i < strips; ++i)
      if (strip_slab(i, task.row_end) == task.slot)
        total += run_strip(s, task.segment, x, true, i * kBlockUnit, kBlockUnit, task.slot, tiles(worker));
    return total;
  }

  double run_whole(int64_t c, int worker) const {
    Arena arena{state.scratch + worker * state.scratch_bytes};
    const TileScratch<T> scratch = tile_layout<T>(arena);
    const SegmentRule rule = segment_rule(state.sizes, c);
    Segment<T> s{};
    segment_layout(s, arena, state.sizes, rule);
    attach(s, *state.clouds, c);
    double* sums = arena.take<double>(state.sizes.dim);
    const Kernel& kernel = state.clouds->kernel;
    double* bandwidth = state.clouds->bandwidth + c;
    const bool on_x = arguments->need & (kNeedX | kNeedA), on_y = arguments->need & (kNeedY | kNeedB);
    double total = 0;
    if (rule.streamed) {
      prepare_stream(s, kernel, state.bandwidth_from_data, sums, bandwidth);
      stream(s, [&](Segment<T>& part) {
        total += run_one(part, c, true, false, false, on_y, 0, part.x.rows, 0, s.m, 0, scratch);
      });
    } else {
      prepare_whole(s, kernel, state.bandwidth_from_data, sums, bandwidth);
      const bool rows_x = rule.rows_are_x;
      total += run_one(s, c, rows_x, !rows_x, rows_x ? on_x : on_y, rows_x ? on_y : on_x, 0,
                       rows_x ? s.n : s.m, 0, rows_x ? s.m : s.n, 0, scratch);
    }
    for (const bool x : {true, false}) {
      if (x && rule.streamed) continue;
      const int64_t rows = x ? s.n : s.m;
      // Of few rows the squares on the diagonal would be a large part: lower strips.
      const int64_t height = rows < 4 * kBlockUnit ? kBlockUnit / 2 : kBlockUnit;
      for (int64_t i = 0; i < rows; i += height)
        total += run_strip(s, c, x, x ? on_x : on_y, i, height, 0, scratch);
    }
    if (on_x) finish(s, c, true, 0, s.n);
    finish(s, c, false, 0, s.m);
    return total;
  }

  // Accumulators of rows [begin, end) to the caller: slabs are added in order.
  void finish(const Segment<T>& s, int64_t c, bool on_x, int64_t begin, int64_t end) const {
    const Cloud<T>& cloud = on_x ? s.x : s.y;
    const Matrix &grad = on_x ? arguments->grad_x : arguments->grad_y,
                 &weight = on_x ? arguments->grad_a : arguments->grad_b;
    const int64_t first = (on_x ? state.clouds->x_offsets : state.clouds->y_offsets)[c];
    const bool radial = is_radial(state.clouds->kernel.profile);
    const T inverse_spread = (T)(1 / s.spread);
    for (int64_t i = begin; i < end; ++i) {
      if (cloud.wants_weight) {
        double total = 0;
        for (int k = 0; k < cloud.slabs; ++k) total += cloud.ksum[k * cloud.rows + i];
        ((T*)weight.data)[first + i] = (T)total;
      }
      if (!cloud.wants_grad) continue;
      T* out = (T*)grad.data + (first + i) * grad.stride;
      T* total = cloud.grad + i * cloud.stride;
      double wsum = cloud.wsum[i];
      for (int k = 1; k < cloud.slabs; ++k) {
        const T* more = cloud.grad + (k * cloud.rows + i) * cloud.stride;
        for (int64_t d = 0; d < cloud.dim; ++d) total[d] += more[d];
        wsum += cloud.wsum[k * cloud.rows + i];
      }
      const T* p = cloud.points + i * cloud.stride;
      const T w = (T)wsum, twice = 2 * inverse_spread;
      if (radial)
        for (int64_t d = 0; d < cloud.dim; ++d) out[d] = twice * (w * p[d] - total[d]);
      else
        for (int64_t d = 0; d < cloud.dim; ++d) out[d] = total[d];
    }
  }

  void operator()(int64_t index, int worker) {
    const Task& task = state.schedule.tasks[index];
    state.partials[index] = 0;
    switch (task.kind) {
      case TaskKind::whole:
        state.partials[index] = run_whole(task.segment, worker);
        break;
      case TaskKind::block:
        state.partials[index] = run_block_task(task, worker);
        break;
      case TaskKind::strips:
        state.partials[index] = run_strips(task, worker);
        break;
      case TaskKind::finish:
        finish(state.segments[task.segment], task.segment, task.flags & kOnX, task.row_begin, task.row_end);
        break;
      default:
        run_preparation(state, task);
    }
  }
};

// A segment empty on one side has value and derivatives zero.
template <class T>
static void clear_rows(const Matrix& out, const int64_t* offsets, int64_t c) {
  if (!out.data) return;
  for (int64_t i = offsets[c]; i < offsets[c + 1]; ++i)
    std::memset((T*)out.data + i * out.stride, 0, out.columns * sizeof(T));
}

template <class T>
static void run_sums(const SumsArguments& a, const Sizes& sizes, const Execution& e) {
  SumsRun<T> run{};
  run.arguments = &a;
  run.state.sizes = sizes;
  run.state.clouds = &a.clouds;
  run.state.bandwidth_from_data = a.bandwidth_from_data;
  run.state.schedule = read_schedule(e);
  const ScheduleHeader& header = *run.state.schedule.header;
  Arena arena{(char*)e.workspace};
  state_layout(run.state, arena, sizes, header.chunks, header.tasks, 0, [](auto...) {});
  attach_split(run.state);
  run_rounds(run.state.schedule, e.threads, run);
  for (int64_t c = 0; c < sizes.segments; ++c) {
    a.value[c] = 0;
    if (!segment_rule(sizes, c).empty) continue;
    for (const auto& [out, offsets] :
         {std::pair{&a.grad_x, a.clouds.x_offsets}, std::pair{&a.grad_a, a.clouds.x_offsets},
          std::pair{&a.grad_y, a.clouds.y_offsets}, std::pair{&a.grad_b, a.clouds.y_offsets}})
      clear_rows<T>(*out, offsets, c);
    if (a.bandwidth_from_data) a.clouds.bandwidth[c] = pooled_bandwidth<T>(a.clouds, c);
  }
  for (int32_t t = 0; t < header.tasks; ++t)
    a.value[run.state.schedule.tasks[t].segment] += run.state.partials[t];
}

}  // namespace DECOCT_ISA
}  // namespace decoct
