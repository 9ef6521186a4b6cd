// Hessian-vector products of the kernel sums. With tangents u, v of the points and da, db of the weights,
//   dr_ij = 2 (x_i - y_j) . (u_i - v_j),   dW_ij = dq_ij k' + q_ij k'' dr_ij,   q_ij = a_i b_j,
//   out_i = 2 sum_j dW_ij (x_i - y_j) + W_ij (u_i - v_j),   out_a_i = sum_j db_j k + b_j k' dr_ij
// (for kernels of z = x . y: dz = u_i . y_j + x_i . v_j and out_i = sum_j dW_ij y_j + W_ij v_j).
//
// Three products for the scores and their tangent, two for the sum: 10 D operations a pair and side. Every
// side is computed from its own rows, so no two tasks share memory that they write. Tangents of weights alone
// need 4 D.
#pragma once
#include "matvec.inl"

namespace decoct {
namespace DECOCT_ISA {

template <class T>
struct Tangent {
  T *points, *panels, *dots, *weights, *centre;  // dots: p . u of each row
};

template <class T>
struct HvpScratch {
  TileScratch<T> tiles;
  T *change, *base;  // dr, then dW's partner W
  T* sums;           // (kTileHeight, stride): sum_j dW_ij p_j + W_ij v_j
};

template <class T>
struct HvpBlock {
  const Cloud<T>*rows, *cols;
  const Tangent<T>*row_tangent, *col_tangent;
  const ProfileConstants<T>* constants;
  T weight_scale;
  double kernel_scale;
  bool moving;
  double *change_sum, *base_sum, *weight_sum;  // of the rows of the tile
};

template <class T, Profile P, bool Plan>
static __attribute__((noinline)) void near_tangents(const HvpBlock<T>& b, int64_t i, int64_t j,
                                                    const ivec<T>& near, T* sums, double* weight_sum) {
  const Cloud<T>&rows = *b.rows, &cols = *b.cols;
  const int64_t stride = rows.stride;
  const T *p = rows.points + i * stride, *u = b.row_tangent->points + i * stride;
  for (int l = 0; l < width<T>; ++l) {
    if (!near[l] || j + l >= cols.rows) continue;
    const T *q = cols.points + (j + l) * stride, *v = b.col_tangent->points + (j + l) * stride;
    double change = 0;
    for (int64_t d = 0; d < rows.dim; ++d) change += ((double)p[d] - q[d]) * ((double)u[d] - v[d]);
    change *= 2;
    const Jet<vec<T>> jet =
        profile<P, 2, Math, false, Plan>(*b.constants, splat((T)squared_distance(p, q, rows.dim)),
                                         splat(Plan ? rows.bias[i] + cols.bias[j + l] : T(0)));
    const double k = jet.k[0], k1 = jet.k1[0], k2 = jet.k2[0];
    const double a = rows.weights[i], w = cols.weights[j + l];
    const double da = b.row_tangent->weights[i], dw = b.col_tangent->weights[j + l];
    const double first = b.weight_scale * ((da * w + a * dw) * k1 + a * w * k2 * change);
    const double second = b.weight_scale * a * w * k1 * b.constants->turning;
    for (int64_t d = 0; d < rows.dim; ++d)
      sums[d] -= (T)(first * ((double)p[d] - q[d]) + second * ((double)u[d] - v[d]));
    *weight_sum += dw * k + w * k1 * change;
  }
}

// 2 (p_i - q_j) . (u_i - v_j) for a vector of columns, by differences.
template <class T>
DECOCT_INLINE vec<T> distance_changes(const HvpBlock<T>& b, int64_t i, int64_t column) {
  const int64_t dim = b.rows->dim, first = column / panel<T> * panel<T> * dim + column % panel<T>;
  const T *p = b.rows->points + i * b.rows->stride, *u = b.row_tangent->points + i * b.rows->stride;
  vec<T> change = {};
  for (int64_t d = 0; d < dim; ++d)
    change += (splat(p[d]) - load(b.cols->panels + first + d * panel<T>)) *
              (splat(u[d]) - load(b.col_tangent->panels + first + d * panel<T>));
  return change * T(2);
}

template <class T, Profile P, bool Plan = false>
static void hvp_epilogue(const HvpBlock<T>& b, const HvpScratch<T>& scratch, int64_t i0, int64_t i1,
                         int64_t j0, int64_t j1) {
  const Cloud<T>&rows = *b.rows, &cols = *b.cols;
  const ProfileConstants<T> constants = *b.constants;
  const int64_t columns = round_up(j1 - j0, width<T>);
  for (int64_t i = i0; i < i1; ++i) {
    T* row = scratch.tiles.tile + (i - i0) * kTileColumns<T>;
    T* change_row = scratch.change + (i - i0) * kTileColumns<T>;
    T* base_row = scratch.base + (i - i0) * kTileColumns<T>;
    const T norm = rows.norms[i], dot = b.row_tangent->dots[i], a = rows.weights[i],
            da = b.row_tangent->weights[i];
    vec<T> first_sum = {}, second_sum = {}, weight_sum = {};
    double near_weight = 0;
    for (int64_t j = 0; j < columns; j += width<T>) {
      vec<T> s = load(row + j), change = {};
      vec<T> w = load(cols.weights + j0 + j), dw = load(b.col_tangent->weights + j0 + j);
      if (b.moving) change = load(change_row + j);
      if constexpr (is_radial(P)) {
        const vec<T> norms = load(cols.norms + j0 + j) + norm;
        if (rows.dim < kSmallDim) {
          s = squared_distances(rows.points + i * rows.stride, cols.panels, j0 + j, rows.dim);
          if (b.moving) change = distance_changes(b, i, j0 + j);
        } else {
          s = norms - s * T(2);
          if (b.moving) change = (load(b.col_tangent->dots + j0 + j) + dot - change) * T(2);
        }
        const ivec<T> near = s < norms * kNear<T>;
        if (__builtin_expect(any_lane(near), 0)) {
          near_tangents<T, P, Plan>(b, i, j0 + j, near, scratch.sums + (i - i0) * rows.stride, &near_weight);
          w = near ? vec<T>{} : w;
          dw = near ? vec<T>{} : dw;
          s = near ? norms : s;
        }
      }
      vec<T> bias = {};
      if constexpr (Plan) bias = load(cols.bias + j0 + j) + rows.bias[i];
      const Jet<vec<T>> jet = profile<P, 2, Math, false, Plan>(constants, s, bias);
      vec<T> first = (w * da + dw * a) * jet.k1;
      weight_sum += dw * jet.k;
      if (b.moving) {
        const vec<T> second = w * a * jet.k1 * (b.weight_scale * constants.turning);
        first += w * a * jet.k2 * change;
        weight_sum += w * jet.k1 * change;
        store(base_row + j, second);
        second_sum += second;
      }
      first *= b.weight_scale;
      store(row + j, first);
      first_sum += first;
    }
    if (rows.dim >= kSmallDim) {
      b.change_sum[i - i0] += sum_lanes<T>(first_sum);
      b.base_sum[i - i0] += sum_lanes<T>(second_sum);
    }
    b.weight_sum[i - i0] += b.kernel_scale * ((double)sum_lanes<T>(weight_sum) + near_weight);
  }
}

// Below kSmallDim: the sums run along the columns and, for radial kernels, over differences, so that near
// pairs with large weights lose nothing.
template <class T>
static void add_small_tangents(const HvpBlock<T>& b, const HvpScratch<T>& scratch, int64_t i0, int64_t i1,
                               int64_t j0, int64_t j1, bool radial) {
  const int64_t dim = b.rows->dim, columns = round_up(j1 - j0, width<T>);
  for (int64_t i = i0; i < i1; ++i)
    for (int64_t d = 0; d < dim; ++d) {
      const vec<T> p = splat(b.rows->points[i * dim + d]), u = splat(b.row_tangent->points[i * dim + d]);
      vec<T> sum = {};
      for (int64_t j = 0; j < columns; j += width<T>) {
        const int64_t at = (j0 + j) / panel<T> * panel<T> * dim + (j0 + j) % panel<T> + d * panel<T>;
        const int64_t tile = (i - i0) * kTileColumns<T> + j;
        const vec<T> q = load(b.cols->panels + at), v = load(b.col_tangent->panels + at);
        sum += load(scratch.tiles.tile + tile) * (radial ? q - p : q);
        if (b.moving) sum += load(scratch.base + tile) * (radial ? v - u : v);
      }
      scratch.sums[(i - i0) * dim + d] += sum_lanes<T>(sum);
    }
}

template <class T>
using HvpEpilogue = void (*)(const HvpBlock<T>&, const HvpScratch<T>&, int64_t, int64_t, int64_t, int64_t);

template <class T>
static HvpEpilogue<T> choose_hvp(Profile profile, bool plan) {
  if (plan)
    return profile == Profile::gaussian ? hvp_epilogue<T, Profile::gaussian, true>
                                        : hvp_epilogue<T, Profile::laplacian, true>;
  switch (profile) {
    case Profile::gaussian:
      return hvp_epilogue<T, Profile::gaussian>;
    case Profile::laplacian:
      return hvp_epilogue<T, Profile::laplacian>;
    case Profile::energy:
      return hvp_epilogue<T, Profile::energy>;
    case Profile::inverse_multiquadric:
      return hvp_epilogue<T, Profile::inverse_multiquadric>;
    case Profile::rational_quadratic:
      return hvp_epilogue<T, Profile::rational_quadratic>;
    case Profile::polynomial:
      return hvp_epilogue<T, Profile::polynomial>;
    default:
      return hvp_epilogue<T, Profile::linear>;
  }
}

template <class T>
struct TangentPair {
  Tangent<T> x, y;
};

template <class T>
struct HvpRun {
  const HvpArguments* arguments;
  State<T> state;
  TangentPair<T>* tangents;

  bool moving() const { return arguments->tangent_x.data || arguments->tangent_y.data; }

  // The pooled mean of the tangents: radial kernels see differences only.
  void centre_tangents(int64_t c) const {
    const Segment<T>& s = state.segments[c];
    T* centre = tangents[c].x.centre;
    for (int64_t d = 0; d < s.x.dim; ++d) centre[d] = 0;
    tangents[c].y.centre = centre;
    if (!is_radial(state.clouds->kernel.profile)) return;
    const auto add = [&](const Matrix& tangent, const int64_t* offsets) {
      if (!tangent.data) return;
      for (int64_t i = offsets[c]; i < offsets[c + 1]; ++i)
        for (int64_t d = 0; d < s.x.dim; ++d)
          centre[d] += ((const T*)tangent.data)[i * tangent.stride + d] / (T)(s.n + s.m);
    };
    add(arguments->tangent_x, state.clouds->x_offsets);
    add(arguments->tangent_y, state.clouds->y_offsets);
  }

  void pack_tangent(const Task& task) const {
    const bool on_x = task.flags & kOnX;
    const Segment<T>& s = state.segments[task.segment];
    const Cloud<T>& cloud = on_x ? s.x : s.y;
    const Tangent<T>& t = on_x ? tangents[task.segment].x : tangents[task.segment].y;
    const Matrix& points = on_x ? arguments->tangent_x : arguments->tangent_y;
    const Matrix& weights = on_x ? arguments->tangent_a : arguments->tangent_b;
    const int64_t first = (on_x ? state.clouds->x_offsets : state.clouds->y_offsets)[task.segment];
    const T inverse_spread = (T)(1 / s.spread);
    for (int64_t i = task.row_begin; i < task.row_end; ++i) {
      T* u = t.points + i * cloud.stride;
      const T* p = cloud.points + i * cloud.stride;
      double dot = 0;
      for (int64_t d = 0; d < cloud.dim; ++d) {
        const T value = points.data ? ((const T*)points.data)[(first + i) * points.stride + d] : T(0);
        u[d] = (value - t.centre[d]) * inverse_spread;
        dot += (double)u[d] * p[d];
      }
      for (int64_t d = cloud.dim; d < cloud.stride; ++d) u[d] = 0;
      t.dots[i] = (T)dot;
      t.weights[i] = weights.data ? ((const T*)weights.data)[first + i] : T(0);
    }
    pack_panels(t.points, cloud.stride, cloud.rows, cloud.dim, t.panels, task.row_begin / panel<T>,
                (task.row_end + panel<T> - 1) / panel<T>);
    if (task.row_end == cloud.rows)
      for (int64_t i = cloud.rows; i < round_up(cloud.rows, kTileColumns<T>); ++i)
        t.dots[i] = t.weights[i] = 0;
  }

  void run_term(const HvpBlock<T>& b, const HvpScratch<T>& scratch, int64_t i0, int64_t i1) const {
    const Cloud<T>&rows = *b.rows, &cols = *b.cols;
    const auto epilogue = choose_hvp<T>(state.clouds->kernel.profile, state.clouds->f.data);
    for (int64_t j0 = 0; j0 < cols.rows; j0 += kTileColumns<T>) {
      const int64_t j1 = j0 + kTileColumns<T> < cols.rows ? j0 + kTileColumns<T> : cols.rows;
      T* tile = scratch.tiles.tile;
      scores(rows.points, rows.stride, rows.dim, cols.panels, tile, i0, i1, j0, j1);
      if (b.moving) {
        scores(rows.points, rows.stride, rows.dim, b.col_tangent->panels, scratch.change, i0, i1, j0, j1);
        scores(b.row_tangent->points, rows.stride, rows.dim, cols.panels, scratch.change, i0, i1, j0, j1,
               true);
      }
      epilogue(b, scratch, i0, i1, j0, j1);
      if (rows.dim < kSmallDim) {
        add_small_tangents(b, scratch, i0, i1, j0, j1, is_radial(state.clouds->kernel.profile));
        continue;
      }
      const auto add = [&](const T* weights, const T* points) {
        add_product(i1 - i0, j1 - j0, weights, kTileColumns<T>, 1, points + j0 * rows.stride, rows.stride,
                    scratch.sums);
      };
      add(tile, cols.points);
      if (b.moving) add(scratch.base, b.col_tangent->points);
    }
  }

  HvpScratch<T> scratch_layout(Arena& arena, int64_t stride) const {
    HvpScratch<T> s;
    s.tiles = tile_layout<T>(arena);
    s.change = arena.take<T>(kTileHeight * kTileColumns<T>);
    s.base = arena.take<T>(kTileHeight * kTileColumns<T>);
    s.sums = arena.take<T>(kTileHeight * stride);
    return s;
  }

  void run_rows(const Task& task, int worker) const {
    Arena arena{state.scratch + worker * state.scratch_bytes};
    const int64_t c = task.segment;
    const Segment<T>& s = state.segments[c];
    const HvpScratch<T> scratch = scratch_layout(arena, s.x.stride);
    const bool on_x = task.flags & kOnX, radial = is_radial(state.clouds->kernel.profile);
    const Cloud<T>& rows = on_x ? s.x : s.y;
    const Tangent<T>& tangent = on_x ? tangents[c].x : tangents[c].y;
    const Matrix &out = on_x ? arguments->out_x : arguments->out_y,
                 &weight = on_x ? arguments->out_a : arguments->out_b;
    const int64_t first = (on_x ? state.clouds->x_offsets : state.clouds->y_offsets)[c];
    const T inverse_spread = (T)(1 / s.spread);
    for (int64_t i0 = task.row_begin; i0 < task.row_end; i0 += kTileHeight) {
      const int64_t i1 = i0 + kTileHeight < task.row_end ? i0 + kTileHeight : task.row_end;
      double change_sum[kTileHeight] = {}, base_sum[kTileHeight] = {}, weight_sum[kTileHeight] = {};
      std::memset(scratch.sums, 0, kTileHeight * rows.stride * sizeof(T));
      for (const bool columns_x : {true, false}) {
        const bool symmetric = columns_x == on_x;
        double coefficient = arguments->coefficients[3 * c + (!symmetric ? 1
                                                              : on_x     ? 0
                                                                         : 2)] *
                             (symmetric ? 2 : 1);
        if (coefficient == 0) continue;
        if (state.clouds->kernel.profile == Profile::energy) coefficient *= s.spread;
        const HvpBlock<T> b{&rows,        columns_x ? &s.x : &s.y,
                            &tangent,     columns_x ? &tangents[c].x : &tangents[c].y,
                            &s.constants, (T)coefficient,
                            coefficient,  moving(),
                            change_sum,   base_sum,
                            weight_sum};
        run_term(b, scratch, i0, i1);
      }
      for (int64_t i = i0; i < i1; ++i) {
        const int64_t k = i - i0;
        if (weight.data) ((T*)weight.data)[first + i] = (T)weight_sum[k];
        if (!out.data) continue;
        T* target = (T*)out.data + (first + i) * out.stride;
        const T *p = rows.points + i * rows.stride, *u = tangent.points + i * rows.stride;
        const T* sums = scratch.sums + k * rows.stride;
        const T change = (T)change_sum[k], base = (T)base_sum[k];
        for (int64_t d = 0; d < rows.dim; ++d)
          target[d] = radial ? 2 * inverse_spread * (change * p[d] + base * u[d] - sums[d]) : sums[d];
      }
    }
  }

  void operator()(int64_t index, int worker) {
    const Task& task = state.schedule.tasks[index];
    if (task.kind == TaskKind::block) return run_rows(task, worker);
    run_preparation(state, task);
    if (task.kind == TaskKind::anchor) centre_tangents(task.segment);
    if (task.kind == TaskKind::pack) pack_tangent(task);
  }
};

template <class T>
static void tangent_layout(Tangent<T>& t, Arena& arena, int64_t rows, int64_t dim) {
  const int64_t padded = round_up(rows, kTileColumns<T>);
  t.points = arena.take<T>(rows * padded_stride<T>(dim));
  t.panels = arena.take<T>(round_up(rows, panel<T>) * dim);
  t.dots = arena.take<T>(padded);
  t.weights = arena.take<T>(padded);
}

template <class T>
static void hvp_layout(HvpRun<T>& run, Arena& arena, const Sizes& sizes, int64_t chunks, int64_t tasks) {
  run.tangents = arena.take<TangentPair<T>>(sizes.segments);
  Arena extra{nullptr};
  run.scratch_layout(extra, padded_stride<T>(sizes.dim));
  state_layout(run.state, arena, sizes, chunks, tasks, extra.used,
               [&run, &sizes](int64_t c, const SegmentRule& rule, Arena& a) {
                 TangentPair<T> counted{};
                 TangentPair<T>& pair = a.base ? run.tangents[c] : counted;
                 tangent_layout(pair.x, a, rule.n, sizes.dim);
                 tangent_layout(pair.y, a, rule.m, sizes.dim);
                 pair.x.centre = pair.y.centre = a.take<T>(sizes.dim);
               });
}

template <class T>
static void run_hvp(const HvpArguments& a, const Sizes& sizes, const Execution& e) {
  HvpRun<T> run{};
  run.arguments = &a;
  run.state.sizes = sizes;
  run.state.clouds = &a.clouds;
  run.state.schedule = read_schedule(e);
  Arena arena{(char*)e.workspace};
  hvp_layout(run, arena, sizes, run.state.schedule.header->chunks, run.state.schedule.header->tasks);
  attach_split(run.state);
  run_rounds(run.state.schedule, e.threads, run);
  for (int64_t c = 0; c < sizes.segments; ++c) {
    if (!segment_rule(sizes, c).empty) continue;
    clear_rows<T>(a.out_x, a.clouds.x_offsets, c);
    clear_rows<T>(a.out_a, a.clouds.x_offsets, c);
    clear_rows<T>(a.out_y, a.clouds.y_offsets, c);
    clear_rows<T>(a.out_b, a.clouds.y_offsets, c);
  }
}

}  // namespace DECOCT_ISA
}  // namespace decoct
