// Sums over the rows of each segment: weighted column sums (all that a linear kernel needs) and the "mean"
// bandwidth. O(N D) operations, each row read once (sums) or twice (bandwidth): the memory's bandwidth is the
// bound.
#pragma once
#include "segment.inl"

namespace decoct {
namespace DECOCT_ISA {

constexpr int64_t kColumnChunk = 256;  // columns of one task: their double sums stay in the first-level cache

struct SegmentSumsRun {
  const Clouds& clouds;
  const Matrix& out;
  int64_t chunks;  // column chunks of a segment
};

template <class T>
static void segment_sums_task(void* context, int64_t task, int) {
  const auto& run = *(const SegmentSumsRun*)context;
  const Matrix &x = run.clouds.x, &a = run.clouds.a;
  const int64_t c = task / run.chunks, d0 = task % run.chunks * kColumnChunk;
  const int64_t first = run.clouds.x_offsets[c], rows = run.clouds.x_offsets[c + 1] - first;
  Cloud<T> cloud{};
  cloud.source = (const char*)x.data + (first * x.stride + d0) * element_bytes(x.dtype);
  cloud.source_stride = x.stride;
  cloud.dtype = x.dtype;
  cloud.dim = x.columns - d0 < kColumnChunk ? x.columns - d0 : kColumnChunk;
  double sums[kColumnChunk] = {};
  for (int64_t i = 0; i < rows; ++i) {
    const double weight = a.data ? (double)((const T*)a.data)[first + i] : 1.0;
    for_row(cloud, i, [&](int64_t d, T v) { sums[d] += weight * v; });
  }
  const double scale = a.data || rows == 0 ? 1.0 : 1.0 / (double)rows;
  T* out = (T*)run.out.data + c * run.out.stride + d0;
  for (int64_t d = 0; d < cloud.dim; ++d) out[d] = (T)(sums[d] * scale);
}

[[maybe_unused]] static void run_segment_sums(const Clouds& clouds, const Matrix& out, const Execution& e) {
  const Matrix& x = clouds.x;
  SegmentSumsRun run{clouds, out, (x.columns + kColumnChunk - 1) / kColumnChunk};
  const int threads = x.rows * x.columns < (1 << 15) ? 1 : e.threads;
  cpu::parallel_for(clouds.segments * run.chunks, threads, &run,
                    x.dtype == DType::float64 ? segment_sums_task<double> : segment_sums_task<float>);
}

// Over column chunks: sums, then squares about the mean of the chunk's columns.
template <class T>
static double pooled_bandwidth(const Clouds& clouds, int64_t c) {
  const int64_t n = clouds.x_offsets[c + 1] - clouds.x_offsets[c],
                m = clouds.y_offsets[c + 1] - clouds.y_offsets[c];
  if (n + m < 2) return length_of(0);
  Cloud<T> parts[2] = {};
  attach(parts[0], clouds.x, Matrix{}, Matrix{}, clouds.x_offsets[c]);
  attach(parts[1], clouds.y, Matrix{}, Matrix{}, clouds.y_offsets[c]);
  parts[0].rows = n;
  parts[1].rows = m;
  double total = 0;
  for (int64_t d0 = 0; d0 < clouds.x.columns; d0 += kColumnChunk) {
    double sums[kColumnChunk] = {}, squares[kColumnChunk] = {};
    for (Cloud<T>& part : parts) {
      part.dim = clouds.x.columns - d0 < kColumnChunk ? clouds.x.columns - d0 : kColumnChunk;
      add_column_sums(part, 0, part.rows, sums);
    }
    for (double& sum : sums) sum /= (double)(n + m);
    for (Cloud<T>& part : parts) {
      for (int64_t i = 0; i < part.rows; ++i)
        for_row(part, i,
                [&](int64_t d, T v) { squares[d] += ((double)v - sums[d]) * ((double)v - sums[d]); });
      part.source += kColumnChunk * element_bytes(part.dtype);
    }
    for (double square : squares) total += square;
  }
  return length_of(2 * total / (double)(n + m - 1));
}

struct BandwidthRun {
  const Clouds* clouds;
};

template <class T>
static void bandwidth_task(void* context, int64_t c, int) {
  const Clouds& clouds = *((const BandwidthRun*)context)->clouds;
  clouds.bandwidth[c] = pooled_bandwidth<T>(clouds, c);
}

[[maybe_unused]] static void run_mean_bandwidth(const Clouds& clouds, const Execution& e) {
  BandwidthRun run{&clouds};
  cpu::parallel_for(clouds.segments, e.threads, &run,
                    clouds.x.dtype == DType::float64 ? bandwidth_task<double> : bandwidth_task<float>);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
