// What is done with rows alone, before any pair is formed.
//
//   anchor    c = mean of up to 16 rows of a segment, and its spread              O(16 D) a segment
//   pack      p = (x - c) / spread, |p|^2, weights; then the bandwidth and the kernel's constants
//   sums      sum_i a_i x_i of each segment
//
// Bytes: each row is read once and written once in the products' type; D multiplications a row. Memory
// bandwidth is the bound: (element + 4) N D bytes, 0.25 ms for 100 x (256, 50) x 2048 float32 at 2 TB/s.
// Threads own columns, so that reads of 16 bytes a thread are contiguous and column sums stay with one
// thread; the sixteen rows of a group are in flight together.
//
// Any point near the rows serves as c: |x|^2 - 2 x.y + |y|^2 then cancels no more than the rows differ. A
// mean of all would cost one more pass over them.
#pragma once
#include "problem.cuh"
#include "reduce.cuh"

namespace decoct::cuda {

constexpr int kSamples = 8;     // of each side, for the anchor
constexpr int kGroupRows = 16;  // packed together
constexpr int kPackBlocks = 1024;

constexpr double kSmallestSquare = 1e-10;  // of 2 s^2 under the "mean" rule

DECOCT_DEVICE double length_of(double mean_square) {
  return ::sqrt((mean_square < kSmallestSquare ? kSmallestSquare : mean_square) / 2);
}

DECOCT_DEVICE int sample_count(int rows) {
  return rows < kSamples ? rows : kSamples;
}
DECOCT_DEVICE int64_t sample_row(int64_t first, int rows, int k) {
  return first + (int64_t)k * rows / sample_count(rows);
}

// use(value) for the sampled elements of a column.
template <class T, class Use>
DECOCT_DEVICE void over_samples(const Source& s, int64_t first, int rows, int column, Use use) {
  for (int k = 0; k < sample_count(rows); ++k) use(load_element<T>(s, sample_row(first, rows, k), column));
}

// Mean of the samples of both sides where `wanted`, else 0.
template <class T>
DECOCT_DEVICE T sampled_mean(const Source& x, const Source& y, const SegmentPlan& s, int column,
                             bool wanted) {
  if (!wanted) return T(0);
  double sum = 0;
  if (x.data) over_samples<T>(x, s.x_begin, s.n, column, [&](T v) { sum += (double)v; });
  if (y.data) over_samples<T>(y, s.y_begin, s.m, column, [&](T v) { sum += (double)v; });
  return (T)(sum / (sample_count(s.n) + sample_count(s.m)));
}

// Extreme coordinates are divided by a power of two, or their squares would overflow or vanish.
DECOCT_DEVICE double spread_of(double mean_square, bool single) {
  const double root = ::sqrt(mean_square);
  const int limit = single ? 30 : 400;
  if (!(root > 0) || !(root < 1e300)) return 1;
  const int exponent = ::ilogb(root);
  return exponent > limit || exponent < -limit ? ::ldexp(1.0, exponent) : 1;
}

template <class T>
DECOCT_KERNEL anchor_kernel(Problem<T> p) {
  Shared shared;
  double* partial = shared.take<double>(kWarps);
  const int c = block_index();
  const SegmentPlan s = p.segments[c];
  const bool radial = is_radial(p.kernel.profile);
  double squares = 0;
  for (int d = thread_index(); d < p.dim && s.n + s.m > 0; d += kThreads) {
    const T centre = sampled_mean<T>(p.x.source, p.y.source, s, d, radial);
    p.centres[(int64_t)c * p.dim + d] = centre;
    if (p.tangent_centres)
      p.tangent_centres[(int64_t)c * p.dim + d] =
          sampled_mean<T>(p.x.source_tangents, p.y.source_tangents, s, d, radial);
    if (!radial) continue;
    const auto add = [&](T v) {
      const double difference = (double)v - (double)centre;
      squares += difference * difference;
    };
    over_samples<T>(p.x.source, s.x_begin, s.n, d, add);
    over_samples<T>(p.y.source, s.y_begin, s.m, d, add);
  }
  const double total = block_sum(squares, partial);
  if (thread_index() != 0) return;
  SegmentState<T>& state = p.states[c];
  state.spread = spread_of(total / (sample_count(s.n) + sample_count(s.m)), sizeof(T) == 4);
  state.broken = 0;
  if (p.from_data && s.n + s.m < 2) p.bandwidth[c] = length_of(0);
}

// A point as the products of this precision see it: norms are taken of the rounded points, so that distances
// are those of slightly moved points and not differences of unlike numbers.
template <class T>
DECOCT_DEVICE T rounded(T value, int32_t precision) {
  if (sizeof(T) == 8 || precision == (int32_t)Precision::highest) return value;
  if (precision == (int32_t)Precision::high) return (T)as_float(to_tf32((float)value));
  return (T)as_float(pack_bfloat16((float)value, 0.0f) << 16);
}

// Norms of a group of rows from every thread's share; to chunk_norms only what the bandwidth needs.
template <class T>
DECOCT_DEVICE void finish_group(const Side<T>& side, const double (&exact)[kGroupRows],
                                const double (&packed)[kGroupRows], int64_t row, int rows, double* shared,
                                double& total) {
  for (int r = 0; r < kGroupRows; ++r) {
    const double e = warp_sum(exact[r]), q = warp_sum(packed[r]);
    if (lane_index() != 0) continue;
    shared[warp_index() * 2 * kGroupRows + r] = e;
    shared[warp_index() * 2 * kGroupRows + kGroupRows + r] = q;
  }
  sync_block();
  for (int r = 0; r < rows; ++r) {
    double e = 0, q = 0;
    for (int w = 0; w < kWarps; ++w) {
      e += shared[w * 2 * kGroupRows + r];
      q += shared[w * 2 * kGroupRows + kGroupRows + r];
    }
    total += e;
    if (thread_index() == r && side.norms) side.norms[row + r] = (T)q;
  }
  sync_block();
}

// Rows of one side of a segment, scaled by the segment's spread. Returns their sum of squares, NaN where a
// row is not finite. `sums` receives the sums of their columns unless it is nullptr.
template <class T>
DECOCT_DEVICE double pack_rows(const Problem<T>& p, const Chunk& chunk, double* sums, double* partial) {
  const SegmentPlan s = p.segments[chunk.segment];
  const Side<T>& side = side_of(p, chunk.on_x);
  const T* centre = p.centres + (int64_t)chunk.segment * p.dim;
  const T inverse_spread = (T)(1 / p.states[chunk.segment].spread);
  // Of products with vectors, pairs have no weights.
  const T mean_weight = p.vectors ? T(1) : T(1) / (T)rows_of(s, chunk.on_x);
  double total = 0;
  bool finite = true;
  for (int begin = chunk.row_begin; begin < chunk.row_end; begin += kGroupRows) {
    const int64_t row = first_row(s, chunk.on_x) + begin;
    const int rows = chunk.row_end - begin < kGroupRows ? chunk.row_end - begin : kGroupRows;
    double exact[kGroupRows] = {}, packed[kGroupRows] = {};
    for (int d = 4 * thread_index(); d < p.stride; d += 4 * kThreads) {
      T middle[4];
      double columns[4] = {};
      for (int k = 0; k < 4; ++k) middle[k] = d + k < p.dim ? centre[d + k] : T(0);
#pragma unroll
      for (int r = 0; r < kGroupRows; ++r) {
        if (r >= rows) continue;
        T v[4];
        load_quad(side.source, row + r, d, p.dim, v);
        for (int k = 0; k < 4; ++k) {
          const T z = (v[k] - middle[k]) * inverse_spread;
          finite &= z - z == T(0);
          exact[r] += (double)z * (double)z;
          columns[k] += (double)z;
          v[k] = rounded(z, p.precision);
          packed[r] += (double)v[k] * (double)v[k];
        }
        if (side.points) write_packed_quad(p, side.points, (row + r) * p.stride + d, v);
      }
      for (int k = 0; k < 4 && d + k < p.dim && sums; ++k)
        sums[d + k] = (begin == chunk.row_begin ? 0 : sums[d + k]) + columns[k];
    }
    finish_group(side, exact, packed, row, rows, partial, total);
    if (thread_index() < rows && side.weights) {
      const int64_t i = row + thread_index();
      side.weights[i] = side.source_weights ? side.source_weights[i * side.weight_stride] : mean_weight;
    }
  }
  return sync_block_any(!finite) ? ::nan("") : total;
}

// Where the samples did not show what the segment is to be measured in, its bandwidth or, for kernels without
// one, its spread: all of it is packed again in that unit. Rows that are then out of range are so far that k
// is 0. One block does it, for such data are rare.
template <class T>
DECOCT_DEVICE void pack_again(const Problem<T>& p, int c, double mean_square, double* partial) {
  if (!is_radial(p.kernel.profile) || !p.x.points) return;
  SegmentState<T>& state = p.states[c];
  sync_block();
  const double length = p.bandwidth[c] / state.spread;
  const double unit = p.kernel.profile == Profile::energy ? mean_square : length * length;
  const double factor = spread_of(unit, sizeof(T) == 4);
  sync_block();
  if (factor == 1) return;
  if (thread_index() == 0) state.spread *= factor;
  sync_block();
  for (const int on_x : {1, 0}) pack_rows(p, {c, on_x, 0, rows_of(p.segments[c], on_x)}, nullptr, partial);
}

// 2 s^2 = mean squared distance over pairs i != j of the pooled rows
//       = 2 (sum |z_i|^2 - |sum z_i|^2 / (n + m)) / (n + m - 1), whatever the z are centred on.
template <class T>
DECOCT_DEVICE void calibrate(const Problem<T>& p, int c, double* partial) {
  const SegmentPlan s = p.segments[c];
  double norms = 0, squares = 0;
  for (int k = thread_index(); k < s.chunks; k += kThreads) norms += p.chunk_norms[s.first_chunk + k];
  norms = block_sum(norms, partial);
  SegmentState<T>& state = p.states[c];
  const double count = (double)s.n + s.m;
  if (p.from_data && count >= 2) {
    for (int d = thread_index(); d < p.dim; d += kThreads) {
      double sum = 0;
      for (int k = 0; k < s.chunks; ++k) sum += p.chunk_sums[(int64_t)(s.first_chunk + k) * p.dim + d];
      squares += sum * sum;
    }
    squares = block_sum(squares, partial);
  }
  if (p.from_data && count >= 2 && thread_index() == 0)
    p.bandwidth[c] = length_of(2 * state.spread * state.spread * (norms - squares / count) / (count - 1));
  pack_again(p, c, norms / count, partial);
  if (thread_index() != 0) return;
  state.broken = !(norms - norms == 0);
  set_constants(state.constants, p.kernel, p.bandwidth[c], state.spread * state.spread, p.dim);
}

template <class T>
DECOCT_KERNEL pack_kernel(Problem<T> p) {
  Shared shared;
  double* partial = shared.take<double>(kWarps * 2 * kGroupRows);
  int* arrival = shared.take<int>(1);
  const Chunk chunk = p.chunks[block_index()];
  const double total = pack_rows(p, chunk, p.chunk_sums + (int64_t)block_index() * p.dim, partial);
  if (thread_index() == 0) p.chunk_norms[block_index()] = total;
  const int chunks = p.segments[chunk.segment].chunks;
  if (last_to_arrive(p.tickets + chunk.segment, chunks, arrival)) calibrate(p, chunk.segment, partial);
}

// Tangents of the rows, centred and scaled like these; a warp takes a row.
template <class T>
DECOCT_KERNEL pack_tangents_kernel(Problem<T> p) {
  const Chunk chunk = p.chunks[block_index()];
  const SegmentPlan s = p.segments[chunk.segment];
  const Side<T>& side = side_of(p, chunk.on_x);
  const T* centre = p.tangent_centres + (int64_t)chunk.segment * p.dim;
  const T inverse_spread = (T)(1 / p.states[chunk.segment].spread);
  for (int i = chunk.row_begin + warp_index(); i < chunk.row_end; i += kWarps) {
    const int64_t row = first_row(s, chunk.on_x) + i;
    double dot = 0;
    for (int d = lane_index(); d < p.stride; d += 32) {
      const bool inside = d < p.dim;
      const T given =
          inside && side.source_tangents.data ? load_element<T>(side.source_tangents, row, d) : T(0);
      const T u = inside ? rounded((given - centre[d]) * inverse_spread, p.precision) : T(0);
      write_packed(p, side.tangents, row * p.stride + d, u);
      dot += (double)u * (double)read_packed(p, side.points, row * p.stride + d);
    }
    dot = warp_sum(dot);
    if (lane_index() != 0) continue;
    side.dots[row] = (T)dot;
    side.tangent_weights[row] = side.source_tangent_weights ? side.source_tangent_weights[row] : T(0);
  }
}

// Rows of v, zero-padded to whole units: the columns that a product with vectors adds up.
template <class T>
DECOCT_KERNEL pack_vectors_kernel(Problem<T> p, Source v, int64_t rows, int32_t columns) {
  for (int64_t i = (int64_t)block_index() * kWarps + warp_index(); i < rows;
       i += (int64_t)kWarps * kPackBlocks)
    for (int e = lane_index(); e < p.slab_stride; e += 32)
      write_packed(p, p.vectors, i * p.slab_stride + e,
                   e < columns ? rounded(load_element<T>(v, i, e), p.precision) : T(0));
}

// Rows of a chunk, several of whose numbers a thread has under way together.
template <class T>
DECOCT_KERNEL segment_sums_kernel(Problem<T> p, T* out, int64_t out_stride) {
  constexpr int together = 8;
  Shared shared;
  int* arrival = shared.take<int>(1);
  const Chunk chunk = p.chunks[block_index()];
  const SegmentPlan s = p.segments[chunk.segment];
  double* sums = p.chunk_sums + (int64_t)block_index() * p.dim;
  const int64_t first = s.x_begin + chunk.row_begin, stride = p.x.source.stride;
  const int rows = chunk.row_end - chunk.row_begin;
  const T* weights = p.x.source_weights ? p.x.source_weights + first : nullptr;
  with_numbers<T>(p.x.source, [&](const auto* numbers, auto widen) {
    for (int d = thread_index(); d < p.dim; d += kThreads) {
      double sum = 0;
      for (int i = 0; i < rows; i += together) {
        T values[together];
#pragma unroll
        for (int r = 0; r < together; ++r)
          values[r] = i + r < rows ? widen(numbers[(first + i + r) * stride + d]) : T(0);
#pragma unroll
        for (int r = 0; r < together; ++r)
          if (i + r < rows) sum += (weights ? (double)weights[i + r] : 1.0) * (double)values[r];
      }
      sums[d] = sum;
    }
  });
  if (!last_to_arrive(p.tickets + chunk.segment, s.chunks, arrival)) return;
  const double scale = p.x.source_weights ? 1.0 : 1.0 / s.n;
  for (int d = thread_index(); d < p.dim; d += kThreads) {
    double total = 0;
#pragma unroll 8
    for (int k = 0; k < s.chunks; ++k) total += p.chunk_sums[(int64_t)(s.first_chunk + k) * p.dim + d];
    out[chunk.segment * out_stride + d] = (T)(total * scale);
  }
}

}  // namespace decoct::cuda
