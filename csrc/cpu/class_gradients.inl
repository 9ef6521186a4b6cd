// Weight gradients of a convolution or a linear layer, one for each segment of images:
//
//   G_c[o, k] = sum_it w_i d_i[o, t] a_i[patch k of t]       a (N, C, H, W), d (N, P, H', W'), G (P, D)
//
// with D = C times the kernel's taps. 2 N T P D operations, T = H' W'. Bytes: a is read once for every panel
// of outputs (48 floats) and d once for every block of the columns of G, both from the caller's memory;
// nothing of size N T D is ever written.
//
// A tile of G has vectors along the outputs and, one below the other, a few columns k of G. Its sums run over
// positions t: of d a packed row of outputs is loaded, of a one number for each k is broadcast. Column k of t
// is the number at a fixed distance, offset[k], from the place that belongs to t in a zero-padded copy of the
// images: the patches are never formed. A chunk of some 256 positions at a time is copied (a) and transposed
// (d) into scratch that fits the second-level cache, and multiplied from there; unpadded patches of one pixel
// are multiplied from where the caller has them.
//
// Bound: the multiply-adds, for D and P of a few vectors and more. Depthwise convolutions fill one lane of a
// vector: they are right, and slow.
//
// A task owns a panel of outputs and a block of columns of one segment's G and goes through all its images:
// no two tasks add into the same memory, and the order of all sums depends on shapes only.
#pragma once
#include <utility>

#include "images.inl"
#include "parallel.h"

namespace decoct {
namespace DECOCT_ISA {

constexpr int64_t kPositions = 256;               // of a chunk
constexpr int64_t kMostColumns = 1536;            // of a block of G
constexpr int64_t kLeftBytes = int64_t{1} << 20;  // of copied activations, where blocks can be cut so small
constexpr int64_t kWantedTasks = 16, kLeastColumns = 192;
constexpr int64_t kParallelOperations = int64_t{1} << 20;

// Not std::min: code of the library would be shared between instruction sets.
DECOCT_INLINE int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}
DECOCT_INLINE int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

// How a call is cut up; sizes of scratch are in elements.
template <class T>
struct OuterShape {
  int64_t outputs, channels, taps, vectors, panels;  // of one group
  int64_t block, blocks;                             // channels of a block of columns
  int64_t images, rows, columns;                     // of a chunk of positions
  int64_t left_rows, left_columns, pitch;            // of the copies of its images; pitch: of channels
  bool interleaved;                                  // whether the channels of a pixel lie side by side there
  bool direct;  // whether patches of single pixels are multiplied from where the caller has them
  int64_t left, right, sums;

  explicit OuterShape(const SegmentOuterArguments& a) {
    const Convolution& c = a.convolution;
    const Images &in = a.activations, &out = a.gradients;
    outputs = out.channels / c.groups;
    channels = in.channels / c.groups;
    taps = c.kernel[0] * c.kernel[1];
    vectors = ceil_div(outputs, width<T>);
    panels = ceil_div(vectors, kTileVectors);
    columns = larger(divide_evenly(out.width, kPositions), 1);
    rows = larger(divide_evenly(out.height, larger(kPositions / columns, 1)), 1);
    images = rows < out.height || columns < out.width ? 1 : larger(kPositions / (rows * columns), 1);
    left_rows = (rows - 1) * c.stride[0] + (c.kernel[0] - 1) * c.dilation[0] + 1;
    left_columns = (columns - 1) * c.stride[1] + (c.kernel[1] - 1) * c.dilation[1] + 1;
    interleaved = channels_last(in);
    direct = !interleaved && is_of<T>(in.dtype) && taps == 1 && c.padding[0] == 0 && c.padding[1] == 0;
    const int64_t plane = images * left_rows * left_columns;
    const int64_t most = smaller(kMostColumns / taps, kLeftBytes / (int64_t)sizeof(T) / larger(plane, 1));
    block = divide_evenly(channels, larger(most, 1));
    const int64_t others = larger(a.segments * c.groups * panels, 1);
    const int64_t wanted = ceil_div(channels, ceil_div(kWantedTasks, others));
    set_block(divide_evenly(channels, larger(wanted, ceil_div(kLeastColumns, taps))));
  }

  // No more channels than these.
  void set_block(int64_t most) {
    block = smaller(block, most);
    blocks = block ? ceil_div(channels, block) : 1;
    // Not a power of two: the pixels of a channel would fight for few sets of the cache.
    pitch = interleaved ? round_up(block, width<T>) + width<T> : left_rows * left_columns;
    left = direct ? 0 : images * left_rows * left_columns * (interleaved ? pitch : block);
    right = kPositions * panel<T>;
    sums = block * taps * panel<T>;
  }

  // The size of equal parts of at most `most`.
  static int64_t divide_evenly(int64_t whole, int64_t most) {
    return whole ? ceil_div(whole, ceil_div(whole, most)) : 0;
  }
};

template <class T>
struct OuterScratch {
  T *left, *right, *sums;
  int64_t *offsets, *places;  // of columns and of positions, in the copied images

  OuterScratch(const OuterShape<T>& s, Arena& arena) {
    left = arena.take<T>(s.left);
    right = arena.take<T>(s.right);
    sums = arena.take<T>(s.sums);
    offsets = arena.take<int64_t>(s.block * s.taps);
    places = arena.take<int64_t>(kPositions);
  }
};

template <class T>
static int64_t outer_scratch_bytes(const SegmentOuterArguments& a) {
  Arena arena{nullptr};
  OuterScratch<T>(OuterShape<T>(a), arena);
  return arena.used;
}

// sums (+)= left^T right, for R columns of G and V vectors of outputs. One loop over the places of all
// positions, one after another: short loops over rows of images would be left by a mispredicted jump each.
template <class T, int R, int V>
static void outer_tile(int64_t positions, const int64_t* places, const T* left, const int64_t* offsets,
                       const T* right, T* sums_out, bool add) {
  vec<T> sums[R][V] = {};
  int64_t at[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) at[r] = offsets[r];
  for (int64_t t = 0; t < positions; ++t) {
    const T* place = left + places[t];
    vec<T> row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load(right + v * width<T>);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vec<T> number = splat(place[at[r]]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sums[r][v] += number * row[v];
    }
    right += V * width<T>;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* out = sums_out + (r * V + v) * width<T>;
      store(out, add ? load(out) + sums[r][v] : sums[r][v]);
    }
}

template <class T, int V, int R = kTileRows>
DECOCT_INLINE void outer_tail(int64_t count, int64_t positions, const int64_t* places, const T* left,
                              const int64_t* offsets, const T* right, T* sums, bool add) {
  if constexpr (R > 0) {
    if (count == R)
      outer_tile<T, R, V>(positions, places, left, offsets, right, sums, add);
    else
      outer_tail<T, V, R - 1>(count, positions, places, left, offsets, right, sums, add);
  }
}

template <class T, int V>
static void outer_panel(int64_t count, int64_t positions, const int64_t* places, const T* left,
                        const int64_t* offsets, const T* right, T* sums, bool add) {
  // As in gemm_tile.h, a tile of few columns shares with the one before it.
  const int64_t rest = count % kTileRows;
  const bool share = rest && rest < kTileRows / 2 && count > rest;
  const int64_t whole = count - rest - (share ? kTileRows : 0), half = (count - whole + 1) / 2;
  for (int64_t k = 0; k < whole; k += kTileRows)
    outer_tile<T, kTileRows, V>(positions, places, left, offsets + k, right, sums + k * V * width<T>, add);
  const auto tail = [&](int64_t first, int64_t some) {
    outer_tail<T, V>(some, positions, places, left, offsets + first, right, sums + first * V * width<T>, add);
  };
  tail(whole, share ? half : rest);
  if (share) tail(whole + half, count - whole - half);
}

template <class T, int V = kTileVectors>
DECOCT_INLINE void outer_product(int vectors, int64_t count, int64_t positions, const int64_t* places,
                                 const T* left, const int64_t* offsets, const T* right, T* sums, bool add) {
  if constexpr (V > 0) {
    if (vectors == V)
      outer_panel<T, V>(count, positions, places, left, offsets, right, sums, add);
    else
      outer_product<T, V - 1>(vectors, count, positions, places, left, offsets, right, sums, add);
  }
}

template <class T>
struct OuterRun {
  const SegmentOuterArguments& arguments;
  OuterShape<T> shape;
  char* scratch;
  int64_t scratch_bytes;
};

// Part of the positions: images [image, image + images) and rows and columns from (y, x) on.
struct OuterChunk {
  int64_t image, images, y, rows, x, columns;
};

template <class T>
class OuterTask {
 public:
  OuterTask(const OuterRun<T>& run, int64_t task, int worker)
      : a_(run.arguments), s_(run.shape), scratch_(carve(run, worker)) {
    const Convolution& c = a_.convolution;
    const int64_t panel_index = task % s_.panels, block = task / s_.panels % s_.blocks;
    group_ = task / s_.panels / s_.blocks % c.groups;
    segment_ = task / s_.panels / s_.blocks / c.groups;
    const int64_t first_vector = panel_index * s_.vectors / s_.panels;
    vectors_ = (int)((panel_index + 1) * s_.vectors / s_.panels - first_vector);
    first_output_ = first_vector * width<T>;
    outputs_ = smaller(s_.outputs - first_output_, vectors_ * width<T>);
    first_channel_ = block * s_.block;
    channels_ = smaller(s_.block, s_.channels - first_channel_);
    with_bias_ = block == 0 && a_.bias.data;
  }

  void run() { write(add_up(a_.offsets[segment_], a_.offsets[segment_ + 1])); }

  // The sums over images [image, end) to scratch; whether there were any terms.
  bool add_up(int64_t image, int64_t end) {
    set_offsets();
    const Images& out = a_.gradients;
    bool add = false;
    for (; image < end; image += s_.images)
      for (int64_t y = 0; y < out.height; y += s_.rows)
        for (int64_t x = 0; x < out.width; x += s_.columns) {
          const OuterChunk chunk{image, smaller(s_.images, end - image),
                                 y,     smaller(s_.rows, out.height - y),
                                 x,     smaller(s_.columns, out.width - x)};
          if (!s_.direct) copy_left(chunk);
          copy_right(chunk);
          outer_product<T>(vectors_, channels_ * s_.taps, set_places(chunk), scratch_.places, left_of(chunk),
                           scratch_.offsets, scratch_.right, scratch_.sums, add);
          add = true;
        }
    return add;
  }

  // What add_up has left: columns of G, a row of `row()` outputs each, of which the last ones may be zeros.
  const T* sums() const { return scratch_.sums; }
  int64_t columns() const { return channels_ * s_.taps; }
  int64_t row() const { return vectors_ * width<T>; }
  const double* bias() const { return with_bias_ ? bias_ : nullptr; }
  int64_t numbers() const { return (columns() + with_bias_) * row(); }  // with the bias

 private:
  static OuterScratch<T> carve(const OuterRun<T>& run, int worker) {
    Arena arena{run.scratch + worker * run.scratch_bytes};
    return OuterScratch<T>(run.shape, arena);
  }

  int64_t pixel() const { return s_.interleaved ? s_.pitch : 1; }
  int64_t image_step() const {
    return s_.interleaved ? s_.left_rows * s_.left_columns * s_.pitch : channels_ * s_.pitch;
  }

  // From one channel, image, row and column to the next, where patches are multiplied from.
  struct Steps {
    int64_t channel, image, row, column;
  };
  Steps steps() const {
    const int64_t* caller = a_.activations.strides;
    if (s_.direct) return {caller[1], caller[0], caller[2], caller[3]};
    return {s_.interleaved ? 1 : s_.pitch, image_step(), s_.left_columns * pixel(), pixel()};
  }

  void set_offsets() const {
    const Convolution& c = a_.convolution;
    const Steps step = steps();
    int64_t* out = scratch_.offsets;
    for (int64_t channel = 0; channel < channels_; ++channel)
      for (int64_t y = 0; y < c.kernel[0]; ++y)
        for (int64_t x = 0; x < c.kernel[1]; ++x)
          *out++ = channel * step.channel + y * c.dilation[0] * step.row + x * c.dilation[1] * step.column;
  }

  int64_t set_places(const OuterChunk& chunk) const {
    const Convolution& c = a_.convolution;
    const Steps step = steps();
    int64_t* out = scratch_.places;
    for (int64_t i = 0; i < chunk.images; ++i)
      for (int64_t y = 0; y < chunk.rows; ++y)
        for (int64_t x = 0; x < chunk.columns; ++x)
          *out++ = i * step.image + y * c.stride[0] * step.row + x * c.stride[1] * step.column;
    return out - scratch_.places;
  }

  const T* left_of(const OuterChunk& chunk) const {
    if (!s_.direct) return scratch_.left;
    const Convolution& c = a_.convolution;
    return (const T*)element(a_.activations, chunk.image, group_ * s_.channels + first_channel_,
                             chunk.y * c.stride[0], chunk.x * c.stride[1]);
  }

  // What the patches of a chunk see, with zeros around the images.
  void copy_left(const OuterChunk& chunk) const {
    const Convolution& c = a_.convolution;
    const Images& in = a_.activations;
    const int64_t top = chunk.y * c.stride[0] - c.padding[0], left = chunk.x * c.stride[1] - c.padding[1];
    const int64_t rows = (chunk.rows - 1) * c.stride[0] + (c.kernel[0] - 1) * c.dilation[0] + 1;
    const int64_t begin = larger(-left, 0), end = smaller(in.width - left, s_.left_columns);
    const int64_t first = larger(-top, 0), last = smaller(in.height - top, rows);
    const bool inside = begin < end && first < last;
    const bool whole = begin == 0 && end == s_.left_columns && first == 0 && last == rows;
    const int64_t channel = group_ * s_.channels + first_channel_, row_step = s_.left_columns * pixel();
    const int64_t planes = s_.interleaved ? 1 : channels_, plane = s_.left_rows * row_step;
    for (int64_t i = 0; i < chunk.images; ++i)
      for (int64_t k = 0; k < planes; ++k) {
        T* to = scratch_.left + i * image_step() + k * plane;
        if (!whole) std::memset(to, 0, plane * sizeof(T));
        for (int64_t y = first; y < last && inside; ++y) {
          T* row = to + y * row_step + begin * pixel();
          const char* from = element(in, chunk.image + i, channel + k, top + y, left + begin);
          if (s_.interleaved)
            for (int64_t x = begin; x < end; ++x, row += s_.pitch)
              copy_numbers(row, element(in, chunk.image + i, channel, top + y, left + x), in.dtype,
                           channels_);
          else if (in.strides[3] == 1)
            copy_numbers(row, from, in.dtype, end - begin);
          else
            widen(row, from, in.dtype, in.strides[3], end - begin);
        }
      }
  }

  T weight(int64_t image) const { return a_.weights.data ? ((const T*)a_.weights.data)[image] : T(1); }

  // w d, a row of outputs for each position.
  void copy_right(const OuterChunk& chunk) {
    const Images& out = a_.gradients;
    const int64_t stride = vectors_ * width<T>, channel = group_ * s_.outputs + first_output_;
    const bool rows_follow = chunk.columns == out.width && out.strides[2] == out.width * out.strides[3];
    const int64_t runs = rows_follow ? 1 : chunk.rows,
                  length = rows_follow ? chunk.rows * chunk.columns : chunk.columns;
    T* to = scratch_.right;
    for (int64_t i = 0; i < chunk.images; ++i)
      for (int64_t run = 0; run < runs; ++run, to += length * stride) {
        const char* from = element(out, chunk.image + i, channel, chunk.y + run, chunk.x);
        if (channels_last(out))
          copy_pixels(from, length, weight(chunk.image + i), to);
        else
          copy_planes(from, length, weight(chunk.image + i), to);
      }
    if (with_bias_) add_bias((to - scratch_.right) / stride);
  }

  void copy_pixels(const char* from, int64_t length, T weight, T* to) const {
    const Images& out = a_.gradients;
    const int64_t stride = vectors_ * width<T>;
    for (int64_t t = 0; t < length; ++t, to += stride) {
      widen(to, from + t * out.strides[3] * element_bytes(out.dtype), out.dtype, 1, outputs_);
      for (int64_t o = 0; o < outputs_; ++o) to[o] *= weight;
      std::memset(to + outputs_, 0, (stride - outputs_) * sizeof(T));
    }
  }

  void copy_planes(const char* from, int64_t length, T weight, T* to) const {
    const Images& out = a_.gradients;
    const int64_t stride = vectors_ * width<T>, size = element_bytes(out.dtype);
    const bool direct = is_of<T>(out.dtype) && out.strides[3] == 1;
    for (int64_t o = 0; o < stride; o += width<T>)
      for (int64_t t = 0; t < length; t += width<T>) {
        const int64_t count = smaller(width<T>, length - t);
        vec<T> square[width<T>];
        for (int64_t r = 0; r < width<T>; ++r) {
          square[r] = vec<T>{};
          if (o + r >= outputs_) continue;
          const char* run = from + ((o + r) * out.strides[1] + t * out.strides[3]) * size;
          if (direct && count == width<T>) {
            square[r] = load((const T*)run);
          } else {
            T numbers[width<T>] = {};
            widen(numbers, run, out.dtype, out.strides[3], count);
            square[r] = load(numbers);
          }
          square[r] *= weight;
        }
        transpose<T>(square);
        for (int64_t r = 0; r < count; ++r) store(to + (t + r) * stride + o, square[r]);
      }
  }

  void add_bias(int64_t positions) {
    const int64_t stride = vectors_ * width<T>;
    for (int64_t o = 0; o < stride; o += width<T>) {
      vec<T> total = {};
      for (int64_t t = 0; t < positions; ++t) total += load(scratch_.right + t * stride + o);
      for (int l = 0; l < width<T>; ++l) bias_[o + l] += total[l];
    }
  }

  void write(bool any) const {
    const int64_t count = channels_ * s_.taps, patch = s_.channels * s_.taps, stride = vectors_ * width<T>;
    const int64_t output = group_ * s_.outputs + first_output_;
    T* to = (T*)a_.weight.data + segment_ * a_.weight.stride + output * patch + first_channel_ * s_.taps;
    for (int64_t o = 0; o < outputs_; ++o, to += patch)
      for (int64_t k = 0; k < count; ++k) to[k] = any ? scratch_.sums[k * stride + o] : T(0);
    if (!with_bias_) return;
    T* bias = (T*)a_.bias.data + segment_ * a_.bias.stride + output;
    for (int64_t o = 0; o < outputs_; ++o) bias[o] = (T)bias_[o];
  }

  const SegmentOuterArguments& a_;
  const OuterShape<T>& s_;
  const OuterScratch<T> scratch_;
  int64_t group_, segment_, first_output_, outputs_, first_channel_, channels_;
  int vectors_;
  bool with_bias_;
  double bias_[panel<T>] = {};
};

template <class T>
static void outer_task(void* context, int64_t task, int worker) {
  OuterTask<T>(*(const OuterRun<T>*)context, task, worker).run();
}

template <class T>
static void run_segment_outer(const SegmentOuterArguments& a, const Execution& e) {
  OuterRun<T> run{a, OuterShape<T>(a), (char*)e.workspace, outer_scratch_bytes<T>(a)};
  const OuterShape<T>& s = run.shape;
  const Images& out = a.gradients;
  const int64_t tasks = a.segments * a.convolution.groups * s.blocks * s.panels;
  const double operations = (double)out.count * out.channels * out.height * out.width * s.channels * s.taps;
  cpu::parallel_for(tasks, operations < kParallelOperations ? 1 : e.threads, &run, outer_task<T>);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
