// Squared norms of the weight and bias gradients of each image alone, none of which is stored:
//
//   s_i = |G_i|^2,  G_i[o, k] = sum_t d_i[o, t] a_i[patch k of t]      a (N, C, H, W), d (N, P, T), G (P, D)
//   b_i = |sum_t d_i[., t]|^2
//
// Three forms, of which the one with the fewest operations is taken for all images of a call:
//
//   T = 1         |d_i|^2 |a_i|^2, C + P operations: the bytes of a and d are the bound
//   factored      sum_ts <d_t, d_s> <patch_t, patch_s>. Patches of a convolution overlap: the inner products
//                 of all pairs of pixels, X[q, r] = <a_q, a_r>, are computed once, and that of two patches is
//                 a sum of them over the places of the kernel. Of each symmetric matrix the upper half is
//                 formed: (HW)^2 C + T^2 P + T^2 taps operations, where the patches themselves would
//                 take T^2 D instead of the first
//   instantiated  2 T D P operations: tile after tile of G_i in cache, as class gradients are, squared there
//
// Bytes: a and d once each, but for what does not fit: factored, images too large for one band of X and
// <d_t, d_s> are packed once for each band; instantiated, as class_gradients.inl says.
//
// A task owns an image, so the order of all sums depends on shapes only. Sums over the positions of one
// position's row, and over tiles, are carried in double.
#pragma once
#include "class_gradients.inl"
#include "gemm_tile.h"
#include "patches.inl"

namespace decoct {
namespace DECOCT_ISA {

constexpr int64_t kBandBytes = int64_t{1} << 20;      // wanted, of the inner products of a band
constexpr int64_t kMostBandBytes = int64_t{8} << 20;  // where no band is so small
constexpr int64_t kPairRows = 2 * kTileRows;  // of X, formed at a time: the rest is cut off by the diagonal

enum class SquaresForm { single, factored, instantiated };

template <class T>
struct SquaresShape {
  OuterShape<T> outer;
  SquaresForm form;
  int64_t outputs, channels, taps, positions;  // outputs, channels: of one group
  int64_t grid_height, grid_width;             // of an image with its padding, as far as patches reach
  int64_t line;                                // positions that follow one another at the same distance
  bool plain;                                  // whether positions are pixels
  int64_t a_pitch, d_pitch;                    // of packed channels
  int64_t band, band_pixels;                   // positions of a band, and pixels that its patches span
  int64_t depth;                               // channels that are packed at a time

  explicit SquaresShape(const LayerPair& pair) : outer(outer_of(pair)) {
    const Convolution& c = pair.convolution;
    const Images& out = pair.gradients;
    outputs = outer.outputs;
    channels = outer.channels;
    taps = outer.taps;
    positions = out.height * out.width;
    grid_height = (out.height - 1) * c.stride[0] + (c.kernel[0] - 1) * c.dilation[0] + 1;
    grid_width = (out.width - 1) * c.stride[1] + (c.kernel[1] - 1) * c.dilation[1] + 1;
    plain = taps == 1 && c.stride[0] == 1 && c.stride[1] == 1;
    line = plain ? positions : out.width;
    // A vector more: loads that begin at any place run over the end.
    a_pitch = round_up(grid_height * grid_width, width<T>) + width<T>;
    d_pitch = round_up(positions, width<T>) + width<T>;
    depth = kDepth;
    if (positions <= 1) {
      form = SquaresForm::single;
      band = band_pixels = 0;
      return;
    }
    set_band(c);
    const double t = (double)positions, pixels = (double)(grid_height * grid_width);
    const double factored = pixels * pixels * (double)channels / 2 + t * t * (double)(outputs + taps) / 2;
    const double instantiated = t * (double)(channels * taps) * (double)round_up(outputs, width<T>);
    const bool fits = band_elements(band) * (int64_t)sizeof(T) <= kMostBandBytes;
    form = fits && factored < instantiated ? SquaresForm::factored : SquaresForm::instantiated;
  }

  int64_t pixels_of(int64_t band_positions) const {
    return plain ? band_positions : band_lines(band_positions) * grid_width;
  }
  int64_t band_elements(int64_t band_positions) const {
    return pixels_of(band_positions) * a_pitch + band_positions * d_pitch;
  }

  // Where the grid's pixel is that place (y, x) of the kernel sees from position t.
  static int64_t pixel_of(const Convolution& c, int64_t made_width, int64_t grid, int64_t t, int64_t y,
                          int64_t x) {
    return (t / made_width * c.stride[0] + y * c.dilation[0]) * grid + t % made_width * c.stride[1] +
           x * c.dilation[1];
  }

 private:
  int64_t reach_, stride_;
  int64_t band_lines(int64_t band_positions) const { return (band_positions / line - 1) * stride_ + reach_; }

  // As many positions as are wanted; of a kernel, whole lines.
  void set_band(const Convolution& c) {
    reach_ = (c.kernel[0] - 1) * c.dilation[0] + 1;
    stride_ = c.stride[0];
    const int64_t step = plain ? smaller(kPairRows, positions) : line;
    band = step;
    while (band < positions && band_elements(band + step) * (int64_t)sizeof(T) <= kBandBytes) band += step;
    band = smaller(band, positions);
    band_pixels = pixels_of(band);
  }
};

template <class T>
struct SquaresScratch {
  T *left, *right, *pixel_products, *products;

  SquaresScratch(const SquaresShape<T>& s, Arena& arena) {
    const bool factored = s.form == SquaresForm::factored;
    if (s.form == SquaresForm::instantiated)
      OuterScratch<T>(s.outer, arena);  // the tasks' of class gradients
    left = arena.take<T>(factored ? smaller(s.depth, s.channels) * s.a_pitch : 0);
    right = arena.take<T>(factored ? smaller(s.depth, s.outputs) * s.d_pitch : 0);
    // And a vector, for loads at the end of the last row.
    pixel_products = arena.take<T>(factored ? s.band_pixels * s.a_pitch + width<T> : 0);
    products = arena.take<T>(factored ? s.band * s.d_pitch + width<T> : 0);
  }
};

template <class T>
static int64_t squares_scratch_bytes(const LayerPair& pair) {
  Arena arena{nullptr};
  SquaresScratch<T>(SquaresShape<T>(pair), arena);
  return arena.used;
}

template <class T>
struct SquaresRun {
  const ImageSquaresArguments& arguments;
  SquaresShape<T> shape;
  SegmentOuterArguments outer_arguments;
  OuterRun<T> outer;
  char* scratch;
  int64_t scratch_bytes;

  SquaresRun(const ImageSquaresArguments& a, const Execution& e)
      : arguments(a),
        shape(a.pair),
        outer_arguments(outer_of(a.pair)),
        outer{outer_arguments, shape.outer, (char*)e.workspace, 0},
        scratch((char*)e.workspace),
        scratch_bytes(squares_scratch_bytes<T>(a.pair)) {
    outer_arguments.bias.data = a.bias.data;  // whether it is wanted: nothing is written there
    outer.scratch_bytes = scratch_bytes;      // of a worker, at whose beginning that of class gradients lies
  }
};

template <class T>
DECOCT_INLINE double square_sum(const T* row, int64_t count) {
  vec<T> sums = {};
  int64_t k = 0;
  for (; k + width<T> <= count; k += width<T>) {
    const vec<T> v = load(row + k);
    sums += v * v;
  }
  double total = (double)sum_lanes<T>(sums);
  for (; k < count; ++k) total += (double)row[k] * (double)row[k];
  return total;
}

template <class T>
class SquaresTask {
 public:
  SquaresTask(const SquaresRun<T>& run, int64_t image, int worker)
      : run_(run),
        a_(run.arguments),
        s_(run.shape),
        scratch_(carve(run, worker)),
        image_(image),
        worker_(worker) {}

  void run() {
    const Convolution& c = a_.pair.convolution;
    for (int64_t group = 0; group < c.groups; ++group) {
      if (s_.form == SquaresForm::single)
        add_single(group);
      else if (s_.form == SquaresForm::factored)
        add_factored(group);
      else
        add_instantiated(group);
    }
    *((T*)a_.weight.data + image_ * a_.weight.stride) = (T)weight_;
    if (a_.bias.data) *((T*)a_.bias.data + image_ * a_.bias.stride) = (T)bias_;
  }

 private:
  static SquaresScratch<T> carve(const SquaresRun<T>& run, int worker) {
    Arena arena{run.scratch + worker * run.scratch_bytes};
    return SquaresScratch<T>(run.shape, arena);
  }

  static double squares(const Images& m, const char* from, int64_t stride, int64_t count) {
    double total = 0;
    T numbers[kPositions];
    for (int64_t k = 0; k < count; k += kPositions) {
      const int64_t some = smaller(kPositions, count - k);
      const char* part = from + k * stride * element_bytes(m.dtype);
      if (is_of<T>(m.dtype) && stride == 1) {
        total += square_sum((const T*)part, some);
      } else {
        widen(numbers, part, m.dtype, stride, some);
        total += square_sum(numbers, some);
      }
    }
    return total;
  }

  // One position, or none.
  void add_single(int64_t group) {
    const Images &in = a_.pair.activations, &out = a_.pair.gradients;
    const Convolution& c = a_.pair.convolution;
    if (s_.positions == 0) return;
    const double d = squares(out, element(out, image_, group * s_.outputs, 0, 0), out.strides[1], s_.outputs);
    double patch = 0;
    for (int64_t y = 0; y < c.kernel[0]; ++y)
      for (int64_t x = 0; x < c.kernel[1]; ++x) {
        const int64_t row = y * c.dilation[0] - c.padding[0], column = x * c.dilation[1] - c.padding[1];
        if (row < 0 || row >= in.height || column < 0 || column >= in.width) continue;
        patch +=
            squares(in, element(in, image_, group * s_.channels, row, column), in.strides[1], s_.channels);
      }
    weight_ += d * patch;
    bias_ += d;
  }

  void add_instantiated(int64_t group) {
    const OuterShape<T>& o = s_.outer;
    const int64_t tiles = o.blocks * o.panels;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      OuterTask<T> task(run_.outer, group * tiles + tile, worker_);
      if (!task.add_up(image_, image_ + 1)) continue;
      for (int64_t k = 0; k < task.columns(); ++k)
        weight_ += square_sum(task.sums() + k * task.row(), task.row());
      const double* bias = task.bias();
      for (int64_t p = 0; bias && p < task.row(); ++p) bias_ += bias[p] * bias[p];
    }
  }

  void add_factored(int64_t group) {
    for (int64_t begin = 0; begin < s_.positions; begin += s_.band) {
      const int64_t end = smaller(begin + s_.band, s_.positions);
      form_pixel_products(group, begin, end);
      form_products(group, begin, end);
      for (int64_t t = begin; t < end; ++t) weight_ += pairs_of(t, begin);
    }
  }

  int64_t pixel_of(int64_t t, int64_t y, int64_t x) const {
    return SquaresShape<T>::pixel_of(a_.pair.convolution, a_.pair.gradients.width, s_.grid_width, t, y, x);
  }

  // Rows of inner products of what is packed: columns from the rows' own on. to's row `first` is its first.
  static void form_rows(int64_t first, int64_t end, int64_t depth, const T* packed, int64_t pitch, T* to,
                        bool add) {
    const int64_t columns = pitch - width<T>;
    for (int64_t row = first; row < end; row += kPairRows, to += kPairRows * pitch)
      for (int64_t column = row / width<T> * width<T>; column < columns; column += panel<T>)
        product<T>(smaller(kPairRows, end - row), vectors_for<T>(columns - column), depth, packed + row, 1,
                   pitch, packed + column, pitch, to + column, pitch, add);
  }

  void form_pixel_products(int64_t group, int64_t begin, int64_t end) const {
    const Convolution& c = a_.pair.convolution;
    const Images& in = a_.pair.activations;
    const int64_t first = pixel_of(begin, 0, 0), last = pixel_of(end - 1, c.kernel[0] - 1, c.kernel[1] - 1);
    for (int64_t channel = 0; channel < s_.channels; channel += s_.depth) {
      const int64_t depth = smaller(s_.depth, s_.channels - channel);
      pack_channels(in, image_, group * s_.channels + channel, depth, -c.padding[0], -c.padding[1],
                    s_.grid_height, s_.grid_width, scratch_.left, s_.a_pitch);
      if (s_.plain) {
        form_rows(first, last + 1, depth, scratch_.left, s_.a_pitch, scratch_.pixel_products, channel > 0);
        continue;
      }
      // Rows of padding are not read.
      for (int64_t y = first / s_.grid_width; y <= last / s_.grid_width; ++y) {
        if (y < c.padding[0] || y >= c.padding[0] + in.height) continue;
        const int64_t row = y * s_.grid_width, from = row + smaller(c.padding[1], s_.grid_width);
        const int64_t to = row + smaller(c.padding[1] + in.width, s_.grid_width);
        form_rows(from, to, depth, scratch_.left, s_.a_pitch,
                  scratch_.pixel_products + (from - first) * s_.a_pitch, channel > 0);
      }
    }
  }

  void form_products(int64_t group, int64_t begin, int64_t end) {
    const Images& out = a_.pair.gradients;
    for (int64_t output = 0; output < s_.outputs; output += s_.depth) {
      const int64_t depth = smaller(s_.depth, s_.outputs - output);
      pack_channels(out, image_, group * s_.outputs + output, depth, 0, 0, out.height, out.width,
                    scratch_.right, s_.d_pitch);
      form_rows(begin, end, depth, scratch_.right, s_.d_pitch, scratch_.products, output > 0);
      if (!a_.bias.data || begin > 0) continue;
      for (int64_t o = 0; o < depth; ++o) {
        double total = 0;
        for (int64_t t = 0; t < s_.positions; ++t) total += (double)scratch_.right[o * s_.d_pitch + t];
        bias_ += total * total;
      }
    }
  }

  // sums += x d over `count` positions. What lies behind them may be anything.
  static void add_run(vec<T>& sums, const T* x, const T* d, int64_t step, int64_t count) {
    int64_t k = 0;
    if (step == 1) {
      for (; k + width<T> <= count; k += width<T>) sums += load(x + k) * load(d + k);
      if (k == count) return;
      ivec<T> kept{};
      for (int l = 0; l < width<T>; ++l) kept[l] = k + l < count ? -1 : 0;
      sums += (vec<T>)((ivec<T>)(load(x + k) * load(d + k)) & kept);
      return;
    }
    T total = 0;
    for (; k < count; ++k) total += x[k * step] * d[k];
    sums[0] += total;
  }

  // Position t with itself, and twice with those behind it.
  double pairs_of(int64_t t, int64_t band_begin) const {
    const Convolution& c = a_.pair.convolution;
    const Images& in = a_.pair.activations;
    const int64_t made = a_.pair.gradients.width, first = pixel_of(band_begin, 0, 0);
    const T* d = scratch_.products + (t - band_begin) * s_.d_pitch;
    const int64_t step = s_.plain ? 1 : c.stride[1];
    double once = 0;
    vec<T> twice = {};
    for (int64_t y = 0; y < c.kernel[0]; ++y)
      for (int64_t x = 0; x < c.kernel[1]; ++x) {
        const int64_t row = t / made * c.stride[0] + y * c.dilation[0] - c.padding[0];
        const int64_t column = t % made * c.stride[1] + x * c.dilation[1] - c.padding[1];
        if (row < 0 || row >= in.height || column < 0 || column >= in.width) continue;
        const int64_t q = pixel_of(t, y, x);
        const T* products = scratch_.pixel_products + (q - first) * s_.a_pitch;
        once += (double)products[q] * (double)d[t];
        const int64_t rest = s_.line - 1 - t % s_.line;
        add_run(twice, products + q + step, d + t + 1, step, rest);
        for (int64_t s = t + 1 + rest; s < s_.positions; s += s_.line)
          add_run(twice, products + pixel_of(s, y, x), d + s, step, s_.line);
      }
    return once + 2 * (double)sum_lanes<T>(twice);
  }

  const SquaresRun<T>& run_;
  const ImageSquaresArguments& a_;
  const SquaresShape<T>& s_;
  const SquaresScratch<T> scratch_;
  int64_t image_;
  int worker_;
  double weight_ = 0, bias_ = 0;
};

template <class T>
static void squares_task(void* context, int64_t task, int worker) {
  SquaresTask<T>(*(const SquaresRun<T>*)context, task, worker).run();
}

template <class T>
static void run_image_squares(const ImageSquaresArguments& a, const Execution& e) {
  SquaresRun<T> run(a, e);
  const SquaresShape<T>& s = run.shape;
  const double operations = (double)a.pair.gradients.count * a.pair.gradients.channels * s.positions *
                            (s.form == SquaresForm::single ? 1 : s.channels * s.taps);
  cpu::parallel_for(a.pair.activations.count, operations < kParallelOperations ? 1 : e.threads, &run,
                    squares_task<T>);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
