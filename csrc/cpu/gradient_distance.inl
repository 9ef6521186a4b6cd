// Distance of two lists of gradients with the gradient of the distance, or that gradient's derivative along
// tangents; formulas in gradient_metrics.h.
//
// Shapes: tensors (classes, outer, rows, inner) without gaps, P numbers of a class in all. Bytes: a and b are
// read, one side's gradient is written, 12 P in float32; 10 operations a number (row_cosine). A core does
// them five times faster than its share of memory brings them, so bandwidth is the bound and what counts is
// to read once: a row is summed up and, while it is in the first-level cache, its gradient is written. Only
// rows of more than 256 KiB, and lists that are one row (cosine), are read twice.
//
// Sums run in vectors of the type of computation for at most kRun numbers, then in double.
#pragma once
#include "../gradient_metrics.h"
#include "parallel.h"
#include "simd.h"

namespace decoct {
namespace DECOCT_ISA {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

DECOCT_INLINE vfloat load_as(const float* p, float) {
  return load(p);
}
DECOCT_INLINE vdouble load_as(const double* p, double) {
  return load(p);
}

typedef uint16_t vshort __attribute__((vector_size(kBytes / 2)));

DECOCT_INLINE vfloat load_as(const Bfloat* p, float) {
  vshort v;
  std::memcpy(&v, p, sizeof v);
  return (vfloat)(__builtin_convertvector(v, ivec<float>) << 16);
}

DECOCT_INLINE vfloat load_as(const Half* p, float) {
  vshort v;
  std::memcpy(&v, p, sizeof v);
#if defined(__AVX512F__)
  return (vfloat)_mm512_cvtph_ps((__m256i)v);
#elif defined(__F16C__)
  return (vfloat)_mm256_cvtph_ps((__m128i)v);
#else
  // Exponent and mantissa moved into place, then scaled by 2^112; infinities and NaN keep an exponent of
  // ones.
  const ivec<float> bits = __builtin_convertvector(v, ivec<float>);
  const ivec<float> special = (bits & 0x7c00) == 0x7c00;
  const ivec<float> magnitude = (bits & 0x7fff) << 13;
  const vfloat scaled = (vfloat)magnitude * 0x1p112f;
  const ivec<float> value = ((ivec<float>)scaled & ~special) | ((magnitude | 0x7f800000) & special);
  return (vfloat)(value | (bits & 0x8000) << 16);
#endif
}

// The first `count` of a vector; the rest is 0.
template <class T, class E>
DECOCT_INLINE vec<T> load_first(const E* p, int64_t count) {
  if (count >= width<T>) return load_as(p, T());
  E buffer[width<T>] = {};
  std::memcpy(buffer, p, count * sizeof(E));
  return load_as(buffer, T());
}

template <class T>
DECOCT_INLINE void store_first(T* p, vec<T> v, int64_t count) {
  std::memcpy(p, &v, (count < width<T> ? count : width<T>)*sizeof(T));
}

// Past the caches, to whole vectors' addresses. For results that fit into no cache: an ordinary store reads
// what it overwrites.
#if defined(__AVX512F__)
DECOCT_INLINE void store_past_caches(void* p, const void* v) {
  _mm512_stream_si512((__m512i*)p, _mm512_loadu_si512(v));
}
#elif defined(__AVX2__)
DECOCT_INLINE void store_past_caches(void* p, const void* v) {
  _mm256_stream_si256((__m256i*)p, _mm256_loadu_si256((const __m256i*)v));
}
#else
DECOCT_INLINE void store_past_caches(void* p, const void* v) {
  std::memcpy(p, v, kBytes);
}
#endif

// Other threads see what was stored past the caches.
DECOCT_INLINE void finish_stores() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

constexpr int64_t kCachedBytes = 16 << 20;  // of a side's results: more go past the caches

template <class T>
constexpr int64_t kRun = 64 * width<T>;

// One place in the tensors of one class and in what is flat.
template <class T, class E>
struct GradientPlace {
  const E *a, *b;
  const T *u, *w;
  T *out_a, *out_b;
  bool past_caches;

  GradientPlace at(int64_t k) const {
    return {
        a + k,      b + k, u ? u + k : u, w ? w + k : w, out_a ? out_a + k : out_a, out_b ? out_b + k : out_b,
        past_caches};
  }
};

// Second: along tangents. Apart: with the sums of a - b.
template <class T, class E, bool Second, bool Apart>
struct GradientRows {
  using Place = GradientPlace<T, E>;
  static constexpr int kSums = Second ? kAllSums : kFirstSums;

  struct Vectors {
    vec<T> a, b, u, w;
  };
  DECOCT_INLINE Vectors read(const Place& p, int64_t k, int64_t count) {
    Vectors v;
    v.a = load_first<T>(p.a + k, count);
    v.b = load_first<T>(p.b + k, count);
    v.u = Second ? load_first<T>(p.u + k, count) : vec<T>{};
    v.w = Second ? load_first<T>(p.w + k, count) : vec<T>{};
    return v;
  }

  DECOCT_INLINE void add(vec<T> (&sums)[kSums], const Vectors& v) {
    sums[kSumAB] += v.a * v.b;
    sums[kSumAA] += v.a * v.a;
    sums[kSumBB] += v.b * v.b;
    if constexpr (Apart) sums[kSumApart] += (v.a - v.b) * (v.a - v.b);
    if constexpr (Second) {
      sums[kSumAU] += v.a * v.u;
      sums[kSumBU] += v.b * v.u;
      sums[kSumAW] += v.a * v.w;
      sums[kSumBW] += v.b * v.w;
      if constexpr (Apart) sums[kSumApartMoved] += (v.a - v.b) * (v.u - v.w);
    }
  }

  // Adds n numbers that follow one another to a row's sums.
  static void add_run(double* sums, const Place& p, int64_t n) {
    constexpr int64_t step = width<T>;
    for (int64_t k = 0; k < n; k += kRun<T>) {
      const int64_t end = k + kRun<T> < n ? k + kRun<T> : n;
      vec<T> even[kSums] = {}, odd[kSums] = {};
      int64_t i = k;
      for (; i + 2 * step <= end; i += 2 * step) {
        add(even, read(p, i, step));
        add(odd, read(p, i + step, step));
      }
      if (i + step <= end) {
        add(even, read(p, i, step));
        i += step;
      }
      if (i < end) add(odd, read(p, i, end - i));
      for (int s = 0; s < kSums; ++s) sums[s] += (double)sum_lanes<T>(even[s] + odd[s]);
    }
  }

  // Of one row, or of a row in each lane.
  struct Written {
    vec<T> a, cross, b, apart, moved_a, moved_cross, moved_b, moved_apart;
  };

  DECOCT_INLINE vec<T> out_a(const Written& c, const Vectors& v) {
    if constexpr (!Second) {
      const vec<T> plane = c.a * v.a + c.cross * v.b;
      return Apart ? plane + c.apart * (v.a - v.b) : plane;
    }
    const vec<T> plane = c.a * v.u + c.cross * v.w + c.moved_a * v.a + c.moved_cross * v.b;
    return Apart ? plane + c.apart * (v.u - v.w) + c.moved_apart * (v.a - v.b) : plane;
  }
  DECOCT_INLINE vec<T> out_b(const Written& c, const Vectors& v) {
    if constexpr (!Second) {
      const vec<T> plane = c.cross * v.a + c.b * v.b;
      return Apart ? plane - c.apart * (v.a - v.b) : plane;
    }
    const vec<T> plane = c.cross * v.u + c.b * v.w + c.moved_cross * v.a + c.moved_b * v.b;
    return Apart ? plane - c.apart * (v.u - v.w) - c.moved_apart * (v.a - v.b) : plane;
  }

  // `widen` makes a vector of a number.
  template <class Widen>
  DECOCT_INLINE void set(Written& c, const GradientRule& rule, const double* sums, Widen widen) {
    const RowCoefficients first = row_gradient(rule, sums);
    widen(c.a, (T)first.a);
    widen(c.cross, (T)first.cross);
    widen(c.b, (T)first.b);
    widen(c.apart, (T)first.apart);
    if constexpr (Second) {
      const RowCoefficients moved = row_gradient_moved(rule, sums);
      widen(c.moved_a, (T)moved.a);
      widen(c.moved_cross, (T)moved.cross);
      widen(c.moved_b, (T)moved.b);
      widen(c.moved_apart, (T)moved.apart);
    }
  }
  DECOCT_INLINE Written coefficients(const GradientRule& rule, const double* sums) {
    Written c{};
    set(c, rule, sums, [](vec<T>& v, T value) { v = splat<T>(value); });
    return c;
  }

  static void write_run(const Written& c, const Place& p, int64_t n) {
    int64_t i = 0;
    if (p.out_b && !p.out_a)
      i = write_side(p.out_b, p.past_caches, n, [&](int64_t k) { return out_b(c, read(p, k, width<T>)); });
    else if (p.out_a && !p.out_b)
      i = write_side(p.out_a, p.past_caches, n, [&](int64_t k) { return out_a(c, read(p, k, width<T>)); });
    for (; i < n; i += width<T>) write_some(c, p, i, n - i);
  }
  // Whole vectors; returns where they end.
  template <class Make>
  DECOCT_INLINE int64_t write_side(T* out, bool past_caches, int64_t n, Make make) {
    int64_t i = 0;
    if (past_caches && (uintptr_t)out % kBytes == 0)
      for (; i + width<T> <= n; i += width<T>) {
        const vec<T> v = make(i);
        store_past_caches(out + i, &v);
      }
    else
      for (; i + width<T> <= n; i += width<T>) store(out + i, make(i));
    return i;
  }
  DECOCT_INLINE void write_some(const Written& c, const Place& p, int64_t i, int64_t count) {
    const Vectors v = read(p, i, count);
    if (p.out_a) store_first(p.out_a + i, out_a(c, v), count);
    if (p.out_b) store_first(p.out_b + i, out_b(c, v), count);
  }

  // Returns the distance of rows [begin, end).
  static double rows(const GradientRule& rule, const GradientShape& shape, const Place& p, int64_t begin,
                     int64_t end) {
    const bool written = p.out_a || p.out_b;
    double value = 0;
    for (int64_t r = begin; r < end; ++r) {
      double sums[kSums] = {};
      const auto for_runs = [&](auto use) {
        for (int64_t o = 0; o < shape.outer; ++o) use(p.at((o * shape.rows + r) * shape.inner));
      };
      for_runs([&](const Place& run) { add_run(sums, run, shape.inner); });
      if constexpr (!Second) value += row_distance(rule, sums);
      if (!written) continue;
      const Written c = coefficients(rule, sums);
      for_runs([&](const Place& run) { write_run(c, run, shape.inner); });
    }
    return value;
  }

  // The same of rows of stride 1, one to a lane.
  static double columns(const GradientRule& rule, const GradientShape& shape, const Place& p, int64_t begin,
                        int64_t end) {
    constexpr int64_t flush = 64;
    const bool written = p.out_a || p.out_b;
    double value = 0;
    for (int64_t r = begin; r < end; r += width<T>) {
      const int64_t lanes = end - r < width<T> ? end - r : width<T>;
      double sums[width<T>][kSums] = {};
      for (int64_t o = 0; o < shape.outer; o += flush) {
        vec<T> part[kSums] = {};
        for (int64_t k = o; k < o + flush && k < shape.outer; ++k)
          add(part, read(p, k * shape.rows + r, lanes));
        for (int s = 0; s < kSums; ++s)
          for (int64_t lane = 0; lane < lanes; ++lane) sums[lane][s] += (double)part[s][lane];
      }
      if constexpr (!Second)
        for (int64_t lane = 0; lane < lanes; ++lane) value += row_distance(rule, sums[lane]);
      if (!written) continue;
      Written c{};
      for (int64_t lane = 0; lane < lanes; ++lane)
        set(c, rule, sums[lane], [lane](vec<T>& v, T value) { v[lane] = value; });
      for (int64_t o = 0; o < shape.outer; ++o) write_some(c, p, o * shape.rows + r, lanes);
    }
    return value;
  }
};

// sse, l1, l1_mean: each number for itself.
template <class T, class E, bool Second>
struct GradientElements {
  using Place = GradientPlace<T, E>;

  // The derivative by b; that by a is its negative.
  template <bool Square>
  DECOCT_INLINE vec<T> slope(vec<T> difference, T scale) {
    if constexpr (Square) return scale * difference;
    const ivec<T> unit = (ivec<T>)splat<T>(scale);
    const vec<T> sign = (vec<T>)((difference > 0) & unit) - (vec<T>)((difference < 0) & unit);
    return sign + T(0) * difference;  // NaN stays
  }

  template <bool Square>
  static double span(const Place& p, int64_t n, double share) {
    const T scale = (T)(Square ? 2.0 : share);
    double value = 0;
    for (int64_t k = 0; k < n; k += kRun<T>) {
      const int64_t end = k + kRun<T> < n ? k + kRun<T> : n;
      vec<T> sum{};
      const auto step = [&](int64_t i, int64_t count, bool past) {
        vec<T> out;
        if constexpr (Second) {
          const vec<T> moved = load_first<T>(p.w + i, count) - load_first<T>(p.u + i, count);
          out = Square ? scale * moved : vec<T>{};
        } else {
          const vec<T> difference = load_first<T>(p.b + i, count) - load_first<T>(p.a + i, count);
          sum += Square ? difference * difference : difference > 0 ? difference : -difference;
          out = slope<Square>(difference, scale);
        }
        if (p.out_a) store_first(p.out_a + i, -out, count);
        if (p.out_b) past ? store_past_caches(p.out_b + i, &out) : store_first(p.out_b + i, out, count);
      };
      int64_t i = k;
      if (p.past_caches && (uintptr_t)(p.out_b + k) % kBytes == 0)
        for (; i + width<T> <= end; i += width<T>) step(i, width<T>, true);
      for (; i + width<T> <= end; i += width<T>) step(i, width<T>, false);
      if (i < end) step(i, end - i, false);
      if constexpr (!Second) value += (double)sum_lanes<T>(sum);
    }
    return value * (Square ? 1.0 : share);
  }

  static double run(GradientMetric metric, const GradientShape& shape, const Place& p, int64_t n) {
    if (metric == GradientMetric::sse) return span<true>(p, n, 1);
    return span<false>(p, n, metric == GradientMetric::l1 ? 1 : 1 / (double)(shape.outer * shape.inner));
  }
};

template <class T, class E>
struct GradientRun {
  const GradientArguments& a;
  const Execution& execution;
  bool second;

  const GradientLayout& layout() const { return *a.layout; }
  double* workspace() const { return (double*)execution.workspace; }
  GradientRule rule() const { return {layout().metric, layout().form, layout().epsilon}; }
  int partial() const { return layout().pieces ? kAllSums : 1; }

  // Of a task that is counted inside its class.
  const GradientPart& part_of(int64_t task) const {
    int64_t low = 0, high = a.part_count - 1;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (a.parts[middle].first_task <= task)
        low = middle;
      else
        high = middle - 1;
    }
    return a.parts[low];
  }

  GradientPlace<T, E> place(const GradientPart& part, int64_t c) const {
    const int64_t elements = part.shape.outer * part.shape.rows * part.shape.inner;
    const int64_t flat = part.offset * layout().classes + c * elements;
    const auto in_flat = [flat](const void* memory) { return memory ? (T*)memory + flat : nullptr; };
    const int64_t t = &part - a.parts;
    return {(const E*)a.real[t] + c * elements,
            (const E*)a.synthetic[t] + c * elements,
            in_flat(a.tangent_real),
            in_flat(a.tangent_synthetic),
            in_flat(a.out_real),
            in_flat(a.out_synthetic),
            layout().classes * layout().elements * (int64_t)sizeof(T) > kCachedBytes};
  }

  // use(GradientRows): one copy of the code for each case.
  template <class Use>
  auto with_rows(Use use) const {
    const bool apart = layout().metric == GradientMetric::cosine_l2;
    if (second) return apart ? use(GradientRows<T, E, true, true>()) : use(GradientRows<T, E, true, false>());
    return apart ? use(GradientRows<T, E, false, true>()) : use(GradientRows<T, E, false, false>());
  }

  struct Piece {
    int64_t begin, length, first_task, tasks;  // tasks: of its row
  };
  Piece piece(const GradientPart& part, int64_t local) const {
    const int64_t inner = part.shape.inner, each = part.tasks / part.shape.rows, row = local / each;
    const int64_t within = local % each * part.size;
    return {row * inner + within, inner - within < part.size ? inner - within : part.size,
            part.first_task + row * each, each};
  }

  // Sums up, and writes what needs no other task.
  void first(int64_t task) const {
    const int64_t c = task / layout().tasks;
    const GradientPart& part = part_of(task % layout().tasks);
    const int64_t local = task % layout().tasks - part.first_task;
    const auto p = place(part, c);
    const int64_t begin = local * part.size;
    const auto end_of = [&](int64_t total) { return begin + part.size < total ? begin + part.size : total; };
    double* to = workspace() + task * partial();
    switch (part.cut) {
      case GradientCut::elements: {
        const int64_t n = end_of(part.shape.outer * part.shape.rows * part.shape.inner) - begin;
        *to = second ? GradientElements<T, E, true>::run(layout().metric, part.shape, p.at(begin), n)
                     : GradientElements<T, E, false>::run(layout().metric, part.shape, p.at(begin), n);
        break;
      }
      case GradientCut::rows:
        *to = with_rows([&](auto kind) {
          return decltype(kind)::rows(rule(), part.shape, p, begin, end_of(part.shape.rows));
        });
        break;
      case GradientCut::columns:
        *to = with_rows([&](auto kind) {
          return decltype(kind)::columns(rule(), part.shape, p, begin, end_of(part.shape.rows));
        });
        break;
      case GradientCut::pieces: {
        const Piece own = piece(part, local);
        for (int s = 0; s < kAllSums; ++s) to[s] = 0;
        with_rows([&](auto kind) { decltype(kind)::add_run(to, p.at(own.begin), own.length); });
      }
    }
  }

  void total(const double* from, int64_t tasks, double* sums) const {
    for (int s = 0; s < kAllSums; ++s) sums[s] = 0;
    for (int64_t k = 0; k < tasks; ++k)
      for (int s = 0; s < kAllSums; ++s) sums[s] += from[k * kAllSums + s];
  }

  // Writes a piece, from the sums of its row or list.
  void write(int64_t task) const {
    const int64_t c = task / layout().tasks;
    const GradientPart& part = part_of(task % layout().tasks);
    if (part.cut != GradientCut::pieces) return;
    const Piece own = piece(part, task % layout().tasks - part.first_task);
    const bool list = layout().metric == GradientMetric::cosine;
    double sums[kAllSums];
    total(workspace() + (c * layout().tasks + (list ? 0 : own.first_task)) * kAllSums,
          list ? layout().tasks : own.tasks, sums);
    with_rows([&](auto kind) {
      decltype(kind)::write_run(decltype(kind)::coefficients(rule(), sums), place(part, c).at(own.begin),
                                own.length);
    });
  }

  double value(int64_t c) const {
    const double* partials = workspace() + c * layout().tasks * partial();
    double sum = 0, sums[kAllSums];
    if (layout().metric == GradientMetric::cosine) {
      if (layout().tasks == 0) return 0;
      total(partials, layout().tasks, sums);
      return row_distance(rule(), sums);
    }
    for (int64_t t = 0; t < a.part_count; ++t) {
      const GradientPart& part = a.parts[t];
      const double* from = partials + part.first_task * partial();
      const bool pieces = part.cut == GradientCut::pieces;
      const int64_t step = pieces ? part.tasks / part.shape.rows : 1;
      for (int64_t k = 0; k < part.tasks; k += step) {
        if (pieces) total(from + k * kAllSums, step, sums);
        sum += pieces ? row_distance(rule(), sums) : from[k * partial()];
      }
    }
    return sum;
  }

  void run() const {
    const int64_t tasks = layout().classes * layout().tasks;
    const int threads = layout().classes * layout().elements < (1 << 15) ? 1 : execution.threads;
    cpu::parallel_for(tasks, threads, (void*)this, [](void* self, int64_t task, int) {
      ((const GradientRun*)self)->first(task);
      finish_stores();
    });
    if (layout().pieces && (a.out_real || a.out_synthetic))
      cpu::parallel_for(tasks, threads, (void*)this, [](void* self, int64_t task, int) {
        ((const GradientRun*)self)->write(task);
        finish_stores();
      });
    for (int64_t c = 0; !second && c < layout().classes; ++c) ((T*)a.value)[c] = (T)value(c);
  }
};

}  // namespace DECOCT_ISA
}  // namespace decoct
