// Group normalisation with an affine map, ReLU and average pooling, and its derivatives of both orders.
//
//   h = (x - mean) f, f = 1 / sqrt(variance + epsilon) over the L = C/groups H W numbers of a group
//   value    pool(relu(w h + b))
//   grad     of s, the cotangent: g = s spread over the windows where relu is on,
//            b: sum g    w: sum g h    x: f (w g - [w g] - h [w g h]), [.] a mean over the group
//   second   the derivatives of <t, x's> + <u, w's> + <v, b's>, with h and g as above:
//            s: pool(w q + u h + v where relu is on), q = f (t - [t] - h [t h])
//            w: sum g q
//            x: f (u g - [u g] - h [u g h])
//               - f^2 ([w g h] (t - [t]) + [t h] (w g - [w g]) + h ([t w g] - [t] [w g] - 3 [t h] [w g h]))
//
// One block takes a group of one image. Where they fit into 48 KiB, h, g and t stay in shared memory between
// the sums and what is made of them, else they are read again, for the most part from the second-level cache.
// Bytes, with e an element: value (1 + 1/pool) e per number, grad (2 + 1/pool) e, second (3 + 2/pool) e, of
// which 16 a thread and load; operations: about 10, 20 and 40 a number. Memory bandwidth is the bound: 0.08
// ms for the value of 256 x 128 x 32 x 32 float32 pooled by 2 at 2 TB/s. Sums over images, which weight and
// bias have, are left behind in double and added by a second launch.
//
// Channels-last images are read in place: neighbouring blocks read neighbouring channels out of the same
// sectors of the second-level cache.
#pragma once
#include <type_traits>

#include "problem.cuh"
#include "reduce.cuh"

namespace decoct::cuda {

template <class T>
struct NormView {
  Source x, grad, tangent;  // rows are groups, or nothing is known of them where channels are last
  const T *weight, *bias, *tangent_weight, *tangent_bias;  // nullptr: 1, 0, 0, 0
  T *mean, *factor;
  void *out, *out_grad, *out_x;  // in x's dtype
  double* sums;                  // [sum of a pass][image][channel], for sum_images
  int64_t images;
  int32_t channels, groups, each, height, width, pixels;  // each: channels of a group
  int32_t pool_height, pool_width, pooled_width, pooled;  // pooled: pixels
  bool relu, last, wants_weight;
  double epsilon;

  DECOCT_DEVICE int count() const { return each * pixels; }
};

// A pixel of a group, counted channel by channel and row by row.
struct Pixel {
  int channel, row, column;

  DECOCT_DEVICE Pixel(int at, int pixels, int width)
      : channel(at / pixels), row(at % pixels / width), column(at % pixels % width) {}
  DECOCT_DEVICE void advance(int height, int width) {
    if (++column < width) return;
    column = 0;
    if (++row < height) return;
    row = 0;
    ++channel;
  }
};

DECOCT_DEVICE int window_of(int at, int side) {
  return side == 1 ? at : side == 2 ? at >> 1 : at / side;
}

template <class T>
DECOCT_DEVICE void store_element(void* data, DType type, int64_t at, T value) {
  switch (type) {
    case DType::float64:
      ((double*)data)[at] = (double)value;
      break;
    case DType::float16:
      ((uint16_t*)data)[at] = float_to_half((float)value);
      break;
    case DType::bfloat16:
      ((uint16_t*)data)[at] = (uint16_t)pack_bfloat16((float)value, 0.0f);
      break;
    default:
      ((float*)data)[at] = (float)value;
  }
}

// One block's group. What is kept is so little that a thread's share of a sum needs no double.
template <class T, bool Kept>
struct NormGroup {
  using Sum = std::conditional_t<Kept, T, double>;

  const NormView<T>& p;
  int64_t image;
  int group;
  T mean, factor;
  T *h, *g, *t;  // shared: normalised numbers, gradients where ReLU is on, tangents

  DECOCT_DEVICE NormGroup(const NormView<T>& view) : p(view), h(nullptr), g(nullptr), t(nullptr) {
    image = block_index() / p.groups;
    group = block_index() % p.groups;
  }

  DECOCT_DEVICE int channel(int k) const { return group * p.each + k; }
  DECOCT_DEVICE int64_t statistic() const { return image * p.groups + group; }
  // Where a pixel of a channel of the group is in images of so many pixels.
  DECOCT_DEVICE int64_t at(int k, int pixel, int pixels) const {
    return p.last ? (image * pixels + pixel) * p.channels + channel(k)
                  : (image * p.channels + channel(k)) * pixels + pixel;
  }
  DECOCT_DEVICE T weight(int k) const { return p.weight ? p.weight[channel(k)] : T(1); }
  DECOCT_DEVICE T bias(int k) const { return p.bias ? p.bias[channel(k)] : T(0); }
  DECOCT_DEVICE T tangent_weight(int k) const {
    return p.tangent_weight ? p.tangent_weight[channel(k)] : T(0);
  }
  DECOCT_DEVICE T tangent_bias(int k) const { return p.tangent_bias ? p.tangent_bias[channel(k)] : T(0); }

  // Element d of the group in a tensor of x's shape.
  DECOCT_DEVICE T element(const Source& s, int d) const {
    if (!p.last) return load_element<T>(s, statistic(), d);
    return load_element<T>(s, 0, at(d / p.pixels, d % p.pixels, p.pixels));
  }
  // use(d, four elements from d on; zeros past the end) for this thread's quads.
  template <class Use>
  DECOCT_DEVICE void for_quads(const Source& s, Use use) const {
    for (int d = 4 * thread_index(); d < p.count(); d += 4 * kThreads) {
      T v[4];
      if (!p.last) {
        load_quad(s, statistic(), d, p.count(), v);
      } else {
        for (int k = 0; k < 4; ++k) v[k] = d + k < p.count() ? element(s, d + k) : T(0);
      }
      use(d, v);
    }
  }

  DECOCT_DEVICE T hat(T x) const { return (x - mean) * factor; }
  DECOCT_DEVICE bool is_on(T hat, int k) const {
    return !(p.relu && multiply_add(hat, weight(k), bias(k)) <= T(0));
  }
  DECOCT_DEVICE T spread(const Pixel& pixel) const {
    const int i = window_of(pixel.row, p.pool_height), j = window_of(pixel.column, p.pool_width);
    if (j >= p.pooled_width || i * p.pooled_width >= p.pooled) return T(0);
    const T scale = T(1) / (T)(p.pool_height * p.pool_width);
    return load_element<T>(p.grad, 0, at(pixel.channel, i * p.pooled_width + j, p.pooled)) * scale;
  }

  // What the passes are made of: from shared memory, or made again.
  DECOCT_DEVICE T hat_at(int d) const { return Kept ? h[d] : hat(element(p.x, d)); }
  DECOCT_DEVICE T gradient_at(int d) const {
    if (Kept) return g[d];
    if (!p.grad.data) return T(0);
    const Pixel pixel(d, p.pixels, p.width);
    return is_on(hat_at(d), pixel.channel) ? spread(pixel) : T(0);
  }
  DECOCT_DEVICE T tangent_at(int d) const {
    if (Kept) return t[d];
    return p.tangent.data ? element(p.tangent, d) : T(0);
  }

  DECOCT_DEVICE void keep_gradients() const {
    for_quads(p.x, [&](int d, const T(&x)[4]) {
      Pixel pixel(d, p.pixels, p.width);
      for (int k = 0; k < 4 && d + k < p.count(); ++k) {
        const T normalised = hat(x[k]);
        h[d + k] = normalised;
        g[d + k] = p.grad.data && is_on(normalised, pixel.channel) ? spread(pixel) : T(0);
        pixel.advance(p.height, p.width);
      }
    });
  }
  DECOCT_DEVICE void keep_tangents() const {
    if (!p.tangent.data) {
      for (int d = thread_index(); d < p.count(); d += kThreads) t[d] = T(0);
      return;
    }
    for_quads(p.tangent, [&](int d, const T(&v)[4]) {
      for (int k = 0; k < 4 && d + k < p.count(); ++k) t[d + k] = v[k];
    });
  }

  // What derivatives are made of: statistics, and what is kept.
  DECOCT_DEVICE void read(Shared& shared, bool tangents) {
    mean = p.mean[statistic()];
    factor = p.factor[statistic()];
    if (!Kept) return;
    h = shared.take<T>(p.count());
    g = shared.take<T>(p.count());
    if (tangents) t = shared.take<T>(p.count());
    keep_gradients();
    if (tangents) keep_tangents();
    sync_block();
  }

  // Sums of add(d, sums) over the pixels of each channel; use(channel, sums) is called by one thread for
  // each. A channel goes to a warp where there are enough, else to the block.
  template <int Sums, class Add, class Use>
  DECOCT_DEVICE void over_channels(double* shared, Add add, Use use) const {
    const bool by_warps = p.each >= kWarps;
    const int first = by_warps ? lane_index() : thread_index(), step = by_warps ? 32 : kThreads;
    for (int k = by_warps ? warp_index() : 0; k < p.each; k += by_warps ? kWarps : 1) {
      Sum own[Sums] = {};
      for (int s = first; s < p.pixels; s += step) add(k * p.pixels + s, own);
      double sums[Sums];
      for (int n = 0; n < Sums; ++n)
        sums[n] = by_warps ? warp_sum((double)own[n]) : block_sum((double)own[n], shared);
      if (first == 0) use(k, sums);
    }
  }

  // Writes value(channel, d) to a tensor of x's shape.
  template <class Value>
  DECOCT_DEVICE void write(void* to, Value value) const {
    for (int d = thread_index(); d < p.count(); d += kThreads) {
      const int k = d / p.pixels;
      store_element(to, p.x.dtype, at(k, d % p.pixels, p.pixels), value(k, d));
    }
  }
  // The average of value(channel, d) over the window of pixel o of a pooled channel.
  template <class Value>
  DECOCT_DEVICE T pooled(int k, int o, Value value) const {
    const int row = o / p.pooled_width * p.pool_height, column = o % p.pooled_width * p.pool_width;
    T sum = T(0);
    for (int a = 0; a < p.pool_height; ++a)
      for (int b = 0; b < p.pool_width; ++b) sum += value(k * p.pixels + (row + a) * p.width + column + b);
    return sum * (T(1) / (T)(p.pool_height * p.pool_width));
  }
  // Writes value(channel, d), pooled, to a tensor of the result's shape.
  template <class Value>
  DECOCT_DEVICE void write_pooled(void* to, Value value) const {
    for (int e = thread_index(); e < p.each * p.pooled; e += kThreads) {
      const int k = e / p.pooled, o = e % p.pooled;
      const T result = pooled(k, o, [&](int d) { return value(k, d); });
      store_element(to, p.x.dtype, at(k, o, p.pooled), result);
    }
  }
};

// Shared: kWarps doubles, and L numbers where they are kept.
template <class T, bool Kept>
DECOCT_KERNEL norm_value_kernel(NormView<T> p) {
  Shared shared;
  double* partial = shared.take<double>(kWarps);
  NormGroup<T, Kept> group(p);
  if (Kept) group.h = shared.take<T>(p.count());
  using Sum = typename NormGroup<T, Kept>::Sum;
  Sum sum = 0;
  group.for_quads(p.x, [&](int d, const T(&x)[4]) {
    sum += (Sum)((x[0] + x[1]) + (x[2] + x[3]));
    for (int k = 0; Kept && k < 4 && d + k < p.count(); ++k) group.h[d + k] = x[k];
  });
  const double count = (double)p.count();
  const T centre = (T)(block_sum((double)sum, partial) / count);
  // Squares about the rounded mean, and what that is off.
  Sum off = 0, square = 0;
  for (int d = thread_index(); d < p.count(); d += kThreads) {
    const T difference = (Kept ? group.h[d] : group.element(p.x, d)) - centre;
    off += (Sum)difference;
    square += (Sum)(difference * difference);
  }
  const double mean_off = block_sum((double)off, partial) / count;
  const double variance = block_sum((double)square, partial) / count - mean_off * mean_off;
  group.mean = (T)((double)centre + mean_off);
  group.factor = (T)(1 / ::sqrt((variance < 0 ? 0 : variance) + p.epsilon));
  if (thread_index() == 0) {
    p.mean[group.statistic()] = group.mean;
    p.factor[group.statistic()] = group.factor;
  }
  group.write_pooled(p.out, [&](int k, int d) {
    const T x = Kept ? group.h[d] : group.element(p.x, d);
    const T y = multiply_add(group.hat(x), group.weight(k), group.bias(k));
    return p.relu && y < T(0) ? T(0) : y;
  });
}

// Shared: kWarps doubles, and twice L numbers where they are kept.
template <class T, bool Kept>
DECOCT_KERNEL norm_grad_kernel(NormView<T> p) {
  Shared shared;
  double* partial = shared.take<double>(kWarps);
  NormGroup<T, Kept> group(p);
  using Sum = typename NormGroup<T, Kept>::Sum;
  group.read(shared, false);
  const int64_t image = group.image * p.channels, all = p.images * p.channels;
  double mean = 0, slope = 0;  // [w g], [w g h]
  group.template over_channels<2>(
      partial,
      [&](int d, Sum(&sums)[2]) {
        const T g = group.gradient_at(d);
        sums[0] += (Sum)g;
        sums[1] += (Sum)(g * group.hat_at(d));
      },
      [&](int k, const double(&sums)[2]) {
        mean += (double)group.weight(k) * sums[0];
        slope += (double)group.weight(k) * sums[1];
        p.sums[image + group.channel(k)] = sums[1];
        p.sums[all + image + group.channel(k)] = sums[0];
      });
  if (!p.out_x) return;
  mean = block_sum(mean, partial) / p.count();
  slope = block_sum(slope, partial) / p.count();
  const T shift = group.factor * (T)mean, tilt = group.factor * (T)slope;
  group.write(p.out_x, [&](int k, int d) {
    return group.gradient_at(d) * (group.factor * group.weight(k)) - shift - group.hat_at(d) * tilt;
  });
}

// The means of a group that its second derivatives are made of.
struct NormMeans {
  double t, th, wg, wgh, twg, ug, ugh;

  DECOCT_DEVICE void total(double* shared, int count) {
    for (double* mean : {&t, &th, &wg, &wgh, &twg, &ug, &ugh}) *mean = block_sum(*mean, shared) / count;
  }
};

// Shared: kWarps doubles, and three times L numbers where they are kept.
template <class T, bool Kept>
DECOCT_KERNEL norm_second_kernel(NormView<T> p) {
  Shared shared;
  double* partial = shared.take<double>(kWarps);
  NormGroup<T, Kept> group(p);
  using Sum = typename NormGroup<T, Kept>::Sum;
  group.read(shared, true);
  const int64_t image = group.image * p.channels, all = p.images * p.channels;
  NormMeans m{};
  group.template over_channels<5>(
      partial,
      [&](int d, Sum(&sums)[5]) {
        const T h = group.hat_at(d), g = group.gradient_at(d), t = group.tangent_at(d);
        sums[0] += (Sum)g;
        sums[1] += (Sum)(g * h);
        sums[2] += (Sum)t;
        sums[3] += (Sum)(t * h);
        sums[4] += (Sum)(t * g);
      },
      [&](int k, const double(&sums)[5]) {
        const double w = (double)group.weight(k), u = (double)group.tangent_weight(k);
        m.wg += w * sums[0];
        m.wgh += w * sums[1];
        m.t += sums[2];
        m.th += sums[3];
        m.twg += w * sums[4];
        m.ug += u * sums[0];
        m.ugh += u * sums[1];
        if (!p.wants_weight) return;
        p.sums[image + group.channel(k)] = sums[4];
        p.sums[all + image + group.channel(k)] = sums[0];
        p.sums[2 * all + image + group.channel(k)] = sums[1];
      });
  m.total(partial, p.count());
  const double f = (double)group.factor;
  for (int k = thread_index(); p.wants_weight && k < p.each; k += kThreads) {
    double* sums = p.sums + image + group.channel(k);
    sums[0] = f * (sums[0] - m.t * sums[all] - m.th * sums[2 * all]);
  }
  if (p.out_x) {
    const T by_t = (T)(-f * f * m.wgh), constant = (T)(-f * m.ug + f * f * (m.wgh * m.t + m.th * m.wg)),
            by_h = (T)(-f * m.ugh - f * f * (m.twg - m.t * m.wg - 3 * m.th * m.wgh)),
            by_wg = (T)(-f * f * m.th);
    group.write(p.out_x, [&](int k, int d) {
      const T by_g = group.factor * group.tangent_weight(k) + by_wg * group.weight(k);
      return group.gradient_at(d) * by_g + (group.tangent_at(d) * by_t + (group.hat_at(d) * by_h + constant));
    });
  }
  if (!p.out_grad) return;
  const T mean = (T)m.t, slope = (T)m.th;
  group.write_pooled(p.out_grad, [&](int k, int d) {
    const T h = group.hat_at(d);
    if (!group.is_on(h, k)) return T(0);
    const T q = group.factor * (group.tangent_at(d) - mean - h * slope);
    return group.weight(k) * q + group.tangent_weight(k) * h + group.tangent_bias(k);
  });
}

constexpr int kSumChannels = 8;  // of a block that adds images; its other threads take other images
constexpr int kSumStripes = kThreads / kSumChannels;

// out[c] = sums[0][c] + sums[1][c] + ..., stripes of images first.
template <class T>
DECOCT_KERNEL norm_images_kernel(const double* sums, int64_t images, int32_t channels, T* out) {
  Shared shared;
  double* stripes = shared.take<double>(kThreads);
  const int c = block_index() * kSumChannels + thread_index() % kSumChannels;
  double sum = 0;
  if (c < channels)
    for (int64_t n = thread_index() / kSumChannels; n < images; n += kSumStripes)
      sum += sums[n * channels + c];
  stripes[thread_index()] = sum;
  sync_block();
  if (thread_index() >= kSumChannels || c >= channels) return;
  for (int s = 1; s < kSumStripes; ++s) sum += stripes[s * kSumChannels + thread_index()];
  out[c] = (T)sum;
}

}  // namespace decoct::cuda
