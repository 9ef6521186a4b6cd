// A segment on its way through the rounds: its two clouds, centre, spread and kernel constants, and the
// driver that runs a schedule. What the three ops share.
#pragma once
#include "block.inl"
#include "parallel.h"
#include "plan.h"

namespace decoct {
namespace DECOCT_ISA {

template <class T>
struct Segment {
  int64_t n, m;
  Cloud<T> x, y;
  T* centre;
  double spread;  // the power of two by which extreme coordinates are divided; 1 otherwise
  ProfileConstants<T> constants;
};

struct Schedule {
  const ScheduleHeader* header;
  const int32_t* starts;
  const Task* tasks;
};

inline Schedule read_schedule(const Execution& e) {
  Schedule s;
  s.header = (const ScheduleHeader*)e.schedule;
  s.starts = e.schedule + sizeof(ScheduleHeader) / 4;
  s.tasks = (const Task*)(s.starts + s.header->rounds + 1);
  return s;
}

// Rows that a stream takes at a time: as many as fit beside a tile into the second-level cache.
template <class T>
static int64_t stream_rows(const Cloud<T>& c) {
  constexpr int64_t unit = kTileHeight / 2, bytes = 384 << 10;
  const int64_t fit = bytes / (padded_stride<T>(c.dim) * (int64_t)sizeof(T) + 1) / unit * unit;
  const int64_t rows = fit < unit ? unit : fit < 4 * unit ? fit : 4 * unit;
  return rows < c.rows ? rows : c.rows;
}

template <class T>
static void segment_layout(Segment<T>& s, Arena& arena, const Sizes& sizes, const SegmentRule& rule) {
  s.n = rule.n;
  s.m = rule.m;
  s.x.rows = rule.n;
  s.y.rows = rule.m;
  s.x.dim = s.y.dim = sizes.dim;
  s.x.slabs = rule.x_slabs();
  s.y.slabs = rule.y_slabs();
  const bool sums = sizes.op == Op::sums;
  const bool plan = sizes.op == Op::sinkhorn;
  s.x.wants_grad = (sums || plan) && (sizes.need & kNeedX);
  s.y.wants_grad = (sums || plan) && (sizes.need & kNeedY);
  s.x.wants_weight = plan || (sums && (sizes.need & kNeedA));
  s.y.wants_weight = plan || (sums && (sizes.need & kNeedB));
  s.centre = arena.take<T>(sizes.dim);
  cloud_layout(s.x, arena, rule.x_is_columns, rule.streamed ? stream_rows(s.x) : rule.n);
  cloud_layout(s.y, arena, rule.y_is_columns, rule.m);
}

template <class T>
static void attach(Cloud<T>& c, const Matrix& points, const Matrix& weights, const Matrix& bias,
                   int64_t first) {
  c.source = (const char*)points.data + first * points.stride * element_bytes(points.dtype);
  c.source_stride = points.stride;
  c.dtype = points.dtype;
  c.source_weights = weights.data ? (const T*)weights.data + first : nullptr;
  c.source_bias = bias.data ? (const T*)bias.data + first : nullptr;
}

template <class T>
static void attach(Segment<T>& s, const Clouds& clouds, int64_t c) {
  attach(s.x, clouds.x, clouds.a, clouds.f, clouds.x_offsets[c]);
  attach(s.y, clouds.y, clouds.b, clouds.g, clouds.y_offsets[c]);
}

// Mean squared distance to the centre of a few rows, to see whether squares would overflow or vanish.
template <class T>
static double sampled_square(const Cloud<T>& c, const T* centre) {
  const int64_t samples = c.rows < 16 ? c.rows : 16;
  double total = 0;
  with_rows(c, [&](const auto* rows, auto widen) {
    for (int64_t k = 0; k < samples; ++k) {
      const auto* p = rows + k * c.rows / samples * c.source_stride;
      total += sum_over<double>(c.dim, [=](int64_t d) {
        const double difference = (double)widen(p[d]) - (double)centre[d];
        return difference * difference;
      });
    }
  });
  return total / (double)samples;
}

// Translation-invariant kernels: the pooled mean. Others: zero, or NaN where a row is not finite, so that
// such a row poisons its own segment under every kernel.
template <class T>
static void set_anchor(Segment<T>& s, const Kernel& kernel, const double* sums) {
  const bool radial = is_radial(kernel.profile);
  for (int64_t d = 0; d < s.x.dim; ++d)
    s.centre[d] = (T)(radial ? sums[d] / (double)(s.n + s.m) : sums[d] * 0);
  s.spread = 1;
  if (!radial) return;
  const double root = __builtin_sqrt(0.5 * (sampled_square(s.x, s.centre) + sampled_square(s.y, s.centre)));
  const int limit = sizeof(T) == 4 ? 30 : 400;
  if (!(root > 0) || !(root < __builtin_inf())) return;
  const int exponent = __builtin_ilogb(root);
  if (exponent > limit || exponent < -limit) s.spread = __builtin_ldexp(1.0, exponent);
}

constexpr double kSmallestSquare = 1e-10;  // of 2 s^2 under the "mean" rule

inline double length_of(double mean_square) {
  return __builtin_sqrt((mean_square < kSmallestSquare ? kSmallestSquare : mean_square) / 2);
}

// 2 s^2 = mean squared distance over pairs i != j of the pooled rows = 2 sum |z_i - mean|^2 / (n + m - 1).
template <class T>
static void calibrate(Segment<T>& s, const Kernel& kernel, bool from_data, double norms, double* bandwidth) {
  if (from_data) *bandwidth = length_of(2 * s.spread * s.spread * norms / (double)(s.n + s.m - 1));
  set_constants(s.constants, kernel, *bandwidth, s.spread * s.spread, s.x.dim);
}

template <class T>
static double pack_chunk(const Cloud<T>& c, int64_t begin, int64_t end, const T* centre, double spread) {
  double norms = 0;
  // A panel is made of its rows while they are in cache.
  for (int64_t i = begin; i < end; i += kBlockUnit) {
    const int64_t stop = i + kBlockUnit < end ? i + kBlockUnit : end;
    norms += pack_rows(c, i, stop, centre, (T)(1 / spread));
    if (c.panels)
      pack_panels(c.points, c.stride, c.rows, c.dim, c.panels, i / panel<T>,
                  (stop + panel<T> - 1) / panel<T>);
  }
  clear_accumulators(c, begin, end);
  if (end == c.rows) pad_cloud(c);
  return norms;
}

// Memory of a whole call: the split segments, one double sum a column for each chunk, and scratch for each
// thread.
template <class T>
struct State {
  Sizes sizes;
  const Clouds* clouds;
  Schedule schedule;
  Segment<T>* segments;
  double *chunk_sums, *chunk_norms, *partials;
  char* scratch;
  int64_t scratch_bytes;
  bool bandwidth_from_data;
};

// extra(segment, arena) lays out what an op keeps beside the clouds.
template <class T, class Extra>
static void state_layout(State<T>& state, Arena& arena, const Sizes& sizes, int64_t chunks, int64_t tasks,
                         int64_t op_scratch, Extra extra) {
  state.segments = arena.take<Segment<T>>(sizes.segments);
  state.chunk_sums = arena.take<double>(chunks * sizes.dim);
  state.chunk_norms = arena.take<double>(chunks);
  state.partials = arena.take<double>(tasks);
  int64_t whole_bytes = 0;
  for (int64_t c = 0; c < sizes.segments; ++c) {
    const SegmentRule rule = segment_rule(sizes, c);
    if (rule.empty) continue;
    Segment<T> counted{};
    if (rule.whole) {
      Arena local{nullptr};
      segment_layout(counted, local, sizes, rule);
      local.take<double>(sizes.dim);
      if (local.used > whole_bytes) whole_bytes = local.used;
    } else {
      segment_layout(arena.base ? state.segments[c] : counted, arena, sizes, rule);
      extra(c, rule, arena);
    }
  }
  Arena tile{nullptr};
  tile_layout<T>(tile);
  state.scratch_bytes = tile.used + whole_bytes + op_scratch;
  state.scratch = arena.take<char>(0);
}

// The rounds before the first block: centre, anchor, pack, calibrate. True if the task was one of them.
template <class T>
static bool run_preparation(State<T>& state, const Task& task) {
  Segment<T>& s = state.segments[task.segment];
  const int64_t dim = state.sizes.dim;
  const Cloud<T>& cloud = task.flags & kOnX ? s.x : s.y;
  const int64_t chunks = (s.n + kChunkRows - 1) / kChunkRows + (s.m + kChunkRows - 1) / kChunkRows;
  double* sums = state.chunk_sums + task.slot * dim;
  switch (task.kind) {
    case TaskKind::centre:
      std::memset(sums, 0, dim * sizeof(double));
      add_column_sums(cloud, task.row_begin, task.row_end, sums);
      return true;
    case TaskKind::anchor:
      for (int64_t k = 1; k < chunks; ++k)
        for (int64_t d = 0; d < dim; ++d) sums[d] += sums[k * dim + d];
      set_anchor(s, state.clouds->kernel, sums);
      return true;
    case TaskKind::pack:
      state.chunk_norms[task.slot] = pack_chunk(cloud, task.row_begin, task.row_end, s.centre, s.spread);
      return true;
    case TaskKind::calibrate: {
      double norms = 0;
      for (int64_t k = 0; k < chunks; ++k) norms += state.chunk_norms[task.slot + k];
      calibrate(s, state.clouds->kernel, state.bandwidth_from_data, norms,
                state.clouds->bandwidth + task.segment);
      return true;
    }
    default:
      return false;
  }
}

template <class T>
static void attach_split(State<T>& state) {
  for (int64_t c = 0; c < state.sizes.segments; ++c) {
    const SegmentRule rule = segment_rule(state.sizes, c);
    if (!rule.empty && !rule.whole) attach(state.segments[c], *state.clouds, c);
  }
}

template <class Run>
struct Round {
  Run* run;
  int64_t first;
};

// run(task index, worker) for every task, round by round.
template <class Run>
static void run_rounds(const Schedule& schedule, int threads, Run& run) {
  for (int32_t r = 0; r < schedule.header->rounds; ++r) {
    Round<Run> round{&run, schedule.starts[r]};
    cpu::parallel_for(schedule.starts[r + 1] - schedule.starts[r], threads, &round,
                      [](void* context, int64_t task, int worker) {
                        const auto* current = (const Round<Run>*)context;
                        (*current->run)(current->first + task, worker);
                      });
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
