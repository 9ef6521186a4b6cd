// Distance of two lists of gradients with the gradient of the distance, or that gradient's derivative along
// tangents; formulas in gradient_metrics.h.
//
// Shapes: tensors (classes, outer, rows, inner) without gaps, P numbers of a class in all. Bytes: a and b are
// read, one side's gradient is written: 12 P in float32, 2 us for ten ConvNets of 320010 parameters at
// 20 MB/us; 10 operations a number. Memory's bandwidth is the bound for many classes, launches for one. So
// all tensors and classes go in one launch, which finds them in a table among the kernel's parameters, and a
// row's second reading, when its gradient is written, comes from cache.
//
// A block takes a task: four short rows, one to a warp; a long row; 32 rows of stride 1, one to a lane;
// numbers of a distance that goes by numbers; or a piece of a row that is longer than all this, of which it
// sums up its share. A second launch adds values up, and writes what is in pieces.
//
// Threads sum up to kRun numbers in the type of computation, then in double, in an order that shapes decide.
#pragma once
#include "../gradient_metrics.h"
#include "reduce.cuh"

namespace decoct::cuda {

constexpr int kListTensors = 64;  // of one launch
constexpr int kRun = 64;
constexpr int kShortRow = 1024;  // at most so many numbers: one warp's
constexpr int kColumnRows = 32;  // rows of stride 1 of a block

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

DECOCT_DEVICE float widen(float v) {
  return v;
}
DECOCT_DEVICE double widen(double v) {
  return v;
}
DECOCT_DEVICE float widen(Half v) {
  return half_to_float(v.bits);
}
DECOCT_DEVICE float widen(Bfloat v) {
  return as_float((uint32_t)v.bits << 16);
}

struct ListTensor {
  const void *a, *b;
  int64_t inner, offset;  // offset: elements of a class in the tensors before
  int32_t outer, rows;
  int32_t first_task, tasks;  // of a class
  int32_t size;
  GradientCut cut;
};

template <class T>
struct ListProblem {
  ListTensor tensors[kListTensors];
  int32_t count;                      // of tensors in this launch
  int32_t first_task, tasks;          // theirs, of a class
  int32_t class_tasks, sums, pieces;  // sums: doubles of a task in `partial`
  int32_t classes, first, last;       // whether it is the first launch of its kind, or the last
  GradientRule rule;
  const T *u, *w;
  T *out_a, *out_b, *value;
  double *partial, *running;
};

template <class T>
struct Numbers {
  T a, b, u, w;
};

// One class of one tensor.
template <class T, class E>
struct ListPlace {
  const E *a, *b;
  const T *u, *w;
  T *out_a, *out_b;

  DECOCT_DEVICE Numbers<T> read(int64_t k) const {
    return {widen(a[k]), widen(b[k]), u ? u[k] : T(0), w ? w[k] : T(0)};
  }
};

template <class T, class E>
DECOCT_DEVICE ListPlace<T, E> place_of(const ListProblem<T>& p, const ListTensor& t, int c) {
  const int64_t elements = (int64_t)t.outer * t.rows * t.inner, flat = t.offset * p.classes + c * elements;
  return {(const E*)t.a + c * elements,       (const E*)t.b + c * elements,
          p.u ? p.u + flat : nullptr,         p.w ? p.w + flat : nullptr,
          p.out_a ? p.out_a + flat : nullptr, p.out_b ? p.out_b + flat : nullptr};
}

// The tensor of a task that is counted inside its class.
template <class T>
DECOCT_DEVICE int tensor_of(const ListProblem<T>& p, int task) {
  int low = 0, high = p.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (p.tensors[middle].first_task <= task)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

template <class T, bool Second>
struct ListSums {
  static constexpr int kSums = Second ? kAllSums : kFirstSums;
  T part[kSums];
  double total[kSums];
  int added;

  DECOCT_DEVICE void clear() {
    added = 0;
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      part[s] = T(0);
      total[s] = 0;
    }
  }
  DECOCT_DEVICE void flush() {
    added = 0;
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      total[s] += (double)part[s];
      part[s] = T(0);
    }
  }
  DECOCT_DEVICE void add(const Numbers<T>& v) {
    const T apart = v.a - v.b;
    part[kSumAB] += v.a * v.b;
    part[kSumAA] += v.a * v.a;
    part[kSumBB] += v.b * v.b;
    part[kSumApart] += apart * apart;
    if constexpr (Second) {
      part[kSumAU] += v.a * v.u;
      part[kSumBU] += v.b * v.u;
      part[kSumAW] += v.a * v.w;
      part[kSumBW] += v.b * v.w;
      part[kSumApartMoved] += apart * (v.u - v.w);
    }
    if (++added == kRun) flush();
  }
  // To all lanes of a warp.
  DECOCT_DEVICE void over_warp() {
    flush();
#pragma unroll
    for (int s = 0; s < kSums; ++s) total[s] = warp_sum(total[s]);
  }
  // To all threads of a block. `shared` holds kWarps * kSums doubles and may be used again after it.
  DECOCT_DEVICE void over_block(double* shared) {
    over_warp();
    if (lane_index() == 0)
#pragma unroll
      for (int s = 0; s < kSums; ++s) shared[warp_index() * kSums + s] = total[s];
    sync_block();
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      total[s] = 0;
      for (int w = 0; w < kWarps; ++w) total[s] += shared[w * kSums + s];
    }
    sync_block();
  }
};

template <class T, bool Second>
struct ListWriter {
  T a, cross, b, apart, moved_a, moved_cross, moved_b, moved_apart;

  DECOCT_DEVICE ListWriter(const GradientRule& rule, const double* sums) {
    const RowCoefficients c = row_gradient(rule, sums);
    a = (T)c.a;
    cross = (T)c.cross;
    b = (T)c.b;
    apart = (T)c.apart;
    if constexpr (Second) {
      const RowCoefficients moved = row_gradient_moved(rule, sums);
      moved_a = (T)moved.a;
      moved_cross = (T)moved.cross;
      moved_b = (T)moved.b;
      moved_apart = (T)moved.apart;
    }
  }

  template <class E>
  DECOCT_DEVICE void write(const ListPlace<T, E>& p, int64_t k) const {
    const Numbers<T> v = p.read(k);
    if constexpr (Second) {
      const T away = apart * (v.u - v.w) + moved_apart * (v.a - v.b);
      if (p.out_a) p.out_a[k] = a * v.u + cross * v.w + moved_a * v.a + moved_cross * v.b + away;
      if (p.out_b) p.out_b[k] = cross * v.u + b * v.w + moved_cross * v.a + moved_b * v.b - away;
    } else {
      const T away = apart * (v.a - v.b);
      if (p.out_a) p.out_a[k] = a * v.a + cross * v.b + away;
      if (p.out_b) p.out_b[k] = cross * v.a + b * v.b - away;
    }
  }
};

// sse, l1, l1_mean. Returns what a number adds.
template <class T, class E, bool Second>
DECOCT_DEVICE T write_element(GradientMetric metric, T share, const ListPlace<T, E>& p, int64_t k) {
  const Numbers<T> v = p.read(k);
  const bool square = metric == GradientMetric::sse;
  const T difference = v.b - v.a;
  T slope;
  if constexpr (Second)
    slope = square ? 2 * (v.w - v.u) : T(0);
  else  // NaN stays
    slope = square ? 2 * difference : difference > 0 ? share : difference < 0 ? -share : T(0) * difference;
  if (p.out_a) p.out_a[k] = -slope;
  if (p.out_b) p.out_b[k] = slope;
  return square ? difference * difference : difference < 0 ? -difference : difference;
}

// Rows of a task, by a warp each or one by the block. Returns to every thread what the block's rows add, or
// its warp's.
template <class T, class E, bool Second>
DECOCT_DEVICE double take_rows(const ListProblem<T>& p, const ListTensor& t, const ListPlace<T, E>& place,
                               int local, double* shared) {
  const bool by_warps = t.size > 1;
  const int row = local * t.size + (by_warps ? warp_index() : 0);
  if (row >= t.rows) return 0;  // a whole warp: blocks that take one row have it
  const int64_t length = t.outer * t.inner;
  const int step = by_warps ? 32 : kThreads, start = by_warps ? lane_index() : thread_index();
  const auto at = [&](int64_t k) {
    return t.outer == 1 ? row * t.inner + k : (k / t.inner * t.rows + row) * t.inner + k % t.inner;
  };
  ListSums<T, Second> sums;
  sums.clear();
#pragma unroll 4
  for (int64_t k = start; k < length; k += step) sums.add(place.read(at(k)));
  if (by_warps)
    sums.over_warp();
  else
    sums.over_block(shared);
  if (p.out_a || p.out_b) {
    const ListWriter<T, Second> writer(p.rule, sums.total);
#pragma unroll 4
    for (int64_t k = start; k < length; k += step) writer.write(place, at(k));
  }
  return Second ? 0 : row_distance(p.rule, sums.total);
}

// Rows of stride 1: a lane has a row, the warps share its numbers. Returns to the first warp's lanes what
// their rows add.
template <class T, class E, bool Second>
DECOCT_DEVICE double take_columns(const ListProblem<T>& p, const ListTensor& t, const ListPlace<T, E>& place,
                                  int local, double* shared) {
  using Sums = ListSums<T, Second>;
  const int64_t row = (int64_t)local * t.size + lane_index();
  const bool there = row < t.rows;
  Sums sums;
  sums.clear();
  for (int o = warp_index(); there && o < t.outer; o += kWarps)
    sums.add(place.read((int64_t)o * t.rows + row));
  sums.flush();
#pragma unroll
  for (int s = 0; s < Sums::kSums; ++s)
    shared[(warp_index() * Sums::kSums + s) * 32 + lane_index()] = sums.total[s];
  sync_block();
#pragma unroll
  for (int s = 0; s < Sums::kSums; ++s) {
    sums.total[s] = 0;
    for (int w = 0; w < kWarps; ++w) sums.total[s] += shared[(w * Sums::kSums + s) * 32 + lane_index()];
  }
  sync_block();
  if (there && (p.out_a || p.out_b)) {
    const ListWriter<T, Second> writer(p.rule, sums.total);
    for (int o = warp_index(); o < t.outer; o += kWarps) writer.write(place, (int64_t)o * t.rows + row);
  }
  return !Second && there && warp_index() == 0 ? row_distance(p.rule, sums.total) : 0;
}

template <class T, class E, bool Second>
DECOCT_DEVICE double take_elements(const ListProblem<T>& p, const ListTensor& t, const ListPlace<T, E>& place,
                                   int local) {
  const int64_t elements = (int64_t)t.outer * t.rows * t.inner, begin = (int64_t)local * t.size;
  const int64_t end = begin + t.size < elements ? begin + t.size : elements;
  const double share = p.rule.metric == GradientMetric::l1_mean ? 1 / (double)(t.outer * t.inner) : 1;
  double value = 0;
  T part = 0;
  int added = 0;
#pragma unroll 4
  for (int64_t k = begin + thread_index(); k < end; k += kThreads) {
    part += write_element<T, E, Second>(p.rule.metric, (T)share, place, k);
    if (++added == kRun) {
      value += (double)part;
      part = 0;
      added = 0;
    }
  }
  return Second ? 0 : share * (value + (double)part);
}

struct ListPiece {
  int64_t begin, length;
  int first_task, tasks;  // of its row, of a class
};

DECOCT_DEVICE ListPiece piece_of(const ListTensor& t, int local) {
  const int each = t.tasks / t.rows, row = local / each;
  const int64_t within = (int64_t)(local % each) * t.size;
  return {row * t.inner + within, t.inner - within < t.size ? t.inner - within : t.size,
          t.first_task + row * each, each};
}

// Blocks: (classes, the tasks of these tensors).
template <class T, class E, bool Second>
DECOCT_KERNEL gradient_first_kernel(ListProblem<T> p) {
  Shared memory;
  double* shared = memory.take<double>(kWarps * kAllSums * 32);
  const int c = block_index() / p.tasks, task = p.first_task + block_index() % p.tasks;
  const int index = tensor_of(p, task);
  const ListTensor& t = p.tensors[index];
  const int local = task - t.first_task;
  const ListPlace<T, E> place = place_of<T, E>(p, t, c);
  double* to = p.partial + ((int64_t)c * p.class_tasks + task) * p.sums;
  if (t.cut == GradientCut::pieces) {
    const ListPiece piece = piece_of(t, local);
    ListSums<T, Second> sums;
    sums.clear();
#pragma unroll 4
    for (int64_t k = thread_index(); k < piece.length; k += kThreads) sums.add(place.read(piece.begin + k));
    sums.over_block(shared);
    if (thread_index() == 0)
      for (int s = 0; s < ListSums<T, Second>::kSums; ++s) to[s] = sums.total[s];
    return;
  }
  double mine;
  if (t.cut == GradientCut::elements) {
    mine = take_elements<T, E, Second>(p, t, place, local);
  } else if (t.cut == GradientCut::columns) {
    mine = take_columns<T, E, Second>(p, t, place, local, shared);
  } else {
    mine = take_rows<T, E, Second>(p, t, place, local, shared);
    if (t.size > 1 ? lane_index() != 0 : thread_index() != 0) mine = 0;
  }
  if (Second) return;
  const double value = block_sum(mine, shared);
  if (thread_index() == 0) *to = value;
}

// What the tensors of this launch add to the value of class c, in parts.
template <class T>
DECOCT_DEVICE double values_of(const ListProblem<T>& p, int c) {
  const double* partial = p.partial + (int64_t)c * p.class_tasks * p.sums;
  double mine = 0;
  for (int i = 0; i < p.count; ++i) {
    const ListTensor& t = p.tensors[i];
    const bool pieces = t.cut == GradientCut::pieces;
    const int step = pieces ? t.tasks / t.rows : 1;
    for (int k = thread_index(); k < t.tasks / step; k += kThreads) {
      const double* from = partial + (int64_t)(t.first_task + k * step) * p.sums;
      if (!pieces) {
        mine += *from;
        continue;
      }
      double sums[kFirstSums] = {};
      for (int piece = 0; piece < step; ++piece)
        for (int s = 0; s < kFirstSums; ++s) sums[s] += from[piece * p.sums + s];
      mine += row_distance(p.rule, sums);
    }
  }
  return mine;
}

// The sums of a row in pieces, to all threads of the block.
template <class T, bool Second>
DECOCT_DEVICE void sum_pieces(const ListProblem<T>& p, int c, int first, int tasks, double* shared,
                              ListSums<T, Second>& sums) {
  sums.clear();
  const double* from = p.partial + ((int64_t)c * p.class_tasks + first) * p.sums;
  for (int k = thread_index(); k < tasks; k += kThreads)
#pragma unroll
    for (int s = 0; s < ListSums<T, Second>::kSums; ++s) sums.total[s] += from[(int64_t)k * p.sums + s];
  sums.over_block(shared);
}

// Blocks: a value for each class, but for second derivatives; then, where there are pieces and something to
// write, (classes, the tasks of these tensors).
template <class T, class E, bool Second>
DECOCT_KERNEL gradient_second_kernel(ListProblem<T> p) {
  Shared memory;
  double* shared = memory.take<double>(kWarps * kAllSums);
  const bool list = p.rule.metric == GradientMetric::cosine;
  const int values = Second ? 0 : p.classes;
  ListSums<T, Second> sums;
  if (block_index() < values) {
    const int c = block_index();
    double value;
    if (list) {
      sum_pieces<T, Second>(p, c, 0, p.class_tasks, shared, sums);
      value = row_distance(p.rule, sums.total);
    } else {
      value = block_sum(values_of(p, c), shared);
    }
    if (thread_index() != 0) return;
    if (!list && !p.first) value += p.running[c];
    p.running[c] = value;
    if (p.last) p.value[c] = (T)value;
    return;
  }
  const int block = block_index() - values;
  const int c = block / p.tasks, task = p.first_task + block % p.tasks;
  const int index = tensor_of(p, task);
  const ListTensor& t = p.tensors[index];
  if (t.cut != GradientCut::pieces) return;
  const ListPiece piece = piece_of(t, task - t.first_task);
  sum_pieces<T, Second>(p, c, list ? 0 : piece.first_task, list ? p.class_tasks : piece.tasks, shared, sums);
  const ListWriter<T, Second> writer(p.rule, sums.total);
  const ListPlace<T, E> place = place_of<T, E>(p, t, c);
#pragma unroll 4
  for (int64_t k = thread_index(); k < piece.length; k += kThreads) writer.write(place, piece.begin + k);
}

}  // namespace decoct::cuda
