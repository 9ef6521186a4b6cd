// Group normalisation with an affine map, ReLU and average pooling in one pass, and its derivatives of both
// orders.
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
//   and the means are sums over a channel, weighted: [w g] = sum_c w_c (sum g)_c / L. So each needs two
//   sweeps over a group, the first of which leaves the derivatives by weight and bias of its image behind.
//
// Bytes, with e an element: value (1 + 1/pool) e per number, grad (2 + 1/pool) e, second (3 + 2/pool) e:
// every input is read from memory once, as the second sweep finds a group in the cache that the first one
// read (4 KiB at 32 x 32), and nothing of x's size is kept between the passes but x. Operations: about 8, 14
// and 30 a number, fewer than the bytes take from memory.
//
// Two layouts share the formulas. Contiguous planes: the lanes of a vector are neighbours in a plane, and
// sums are added over the lanes. Channels last, with a group for each channel: the lanes are channels, steps
// go from pixel to pixel, and lanes never meet.
#pragma once
#include "norm_sums.h"
#include "parallel.h"

namespace decoct {
namespace DECOCT_ISA {

constexpr int64_t kNormTask = int64_t{1} << 15;  // numbers of one task

// A worker's scratch, in elements: what cannot be read or written in place goes through it.
struct NormScratch {
  int64_t x = 0, tangent = 0, gradient = 0;  // of a whole group
  int64_t plane = 0, rows = 0;               // of one of its units, before pooling
  int64_t pooled = 0, out = 0;               // of a unit, before its elements are narrowed
  int64_t total() const { return x + tangent + gradient + plane + rows + pooled + out; }
};

template <class T, bool Last>
struct NormRun {
  const NormShape& shape;
  DType type;
  bool narrow, pools;      // elements of 16 bits; windows of more than one pixel
  int64_t blocks, units;   // of an image: groups, or vectors of channels; of these: channels, or one
  int64_t pixels, stride;  // of a unit; from one step to the next
  NormScratch scratch;
  char* memory = nullptr;

  NormRun(NormOp op, const NormShape& s, DType rows)
      : shape(s),
        type(rows),
        narrow(element_bytes(rows) == 2),
        pools(s.pool_height * s.pool_width > 1),
        blocks(Last ? (s.channels + width<T> - 1) / width<T> : s.groups),
        units(Last ? 1 : s.channels / s.groups),
        pixels(s.pixels()),
        stride(Last ? s.channels : width<T>) {
    const int64_t lanes = Last ? width<T> : 1, spare = 4 * width<T>;
    const bool copies = narrow || (Last && s.channels % width<T>);
    const int64_t unit = round_up(pixels * lanes, width<T>) + spare, group = units * pixels * lanes + spare;
    const int64_t pooled_unit = round_up(s.pooled_pixels() * lanes, width<T>) + spare;
    const int64_t used_rows = round_up(s.pooled_height() * s.width, width<T>) + spare;
    scratch.x = copies ? group : 0;
    scratch.tangent = copies && op == NormOp::second ? group : 0;
    scratch.gradient = (copies || pools) && op != NormOp::value ? group : 0;
    scratch.plane = (pools || copies) && op != NormOp::grad ? unit : 0;
    scratch.rows = pools && !Last ? used_rows : 0;
    scratch.pooled = copies ? pooled_unit : 0;
    scratch.out = copies && op != NormOp::value ? unit : 0;
    for (int64_t* part : {&scratch.x, &scratch.tangent, &scratch.gradient, &scratch.plane, &scratch.rows,
                          &scratch.pooled, &scratch.out})
      *part = round_up(*part, 64 / (int64_t)sizeof(T));
  }

  int64_t tasks() const { return shape.images * blocks; }
  Extent extent() const {
    return Last ? Extent{pixels, 0} : Extent{pixels / width<T>, (int)(pixels % width<T>)};
  }
  // Of all units of a group at once, for what does not differ between them.
  Extent group_extent() const {
    const int64_t count = units * pixels;
    return Last ? extent() : Extent{count / width<T>, (int)(count % width<T>)};
  }
};

// One group of one image, or a vector of channels of it.
template <class T, bool Last>
struct NormGroup {
  using Total = Totals<T, Last>;
  const NormRun<T, Last>& run;
  int64_t image, block, first_channel, lanes;  // lanes that are channels
  T *x_scratch, *tangent_scratch, *gradient_scratch, *plane, *rows, *pooled, *out_scratch;

  NormGroup(const NormRun<T, Last>& r, int64_t task, int worker)
      : run(r),
        image(task / r.blocks),
        block(task - image * r.blocks),
        first_channel(block * (Last ? width<T> : r.units)),
        lanes(
            Last ? (r.shape.channels - first_channel < width<T> ? r.shape.channels - first_channel : width<T>)
                 : 1) {
    T* base = (T*)r.memory + worker * r.scratch.total();
    x_scratch = base;
    tangent_scratch = x_scratch + r.scratch.x;
    gradient_scratch = tangent_scratch + r.scratch.tangent;
    plane = gradient_scratch + r.scratch.gradient;
    rows = plane + r.scratch.plane;
    pooled = rows + r.scratch.rows;
    out_scratch = pooled + r.scratch.pooled;
  }

  int64_t group() const { return Last ? first_channel : block; }
  bool in_place() const { return !run.narrow && (!Last || lanes == width<T>); }
  // Where a unit begins in a matrix of images of so many pixels.
  int64_t offset(int64_t unit, int64_t pixels) const {
    return Last ? image * pixels * run.shape.channels + first_channel
                : (image * run.shape.channels + first_channel + unit) * pixels;
  }

  // The group's numbers as steps of T, copied where they cannot be read in place; nothing where there are
  // none.
  Steps<const T> read(const Matrix& m, T* scratch) const {
    if (!m.data) return {nullptr, 0};
    return read_pixels(m, 0, run.units * run.pixels, run.pixels, scratch);
  }
  Steps<const T> read_pixels(const Matrix& m, int64_t unit, int64_t count, int64_t pixels, T* scratch) const {
    const int64_t first = offset(unit, pixels);
    if (in_place()) return {(const T*)m.data + first, run.stride};
    if (!Last) {
      widen(m.data, m.dtype, first, count, scratch);
    } else {
      for (int64_t s = 0; s < count; ++s) {
        // Whatever is there would do, but subnormal numbers are slow.
        for (int64_t k = lanes; k < width<T>; ++k) scratch[s * width<T> + k] = 0;
        widen(m.data, m.dtype, first + s * run.shape.channels, lanes, scratch + s * width<T>);
      }
    }
    return {scratch, width<T>};
  }
  // Where a unit's results go; write() takes them to the matrix where that is not in it.
  Steps<T> target(const Matrix& m, int64_t unit, int64_t pixels, T* scratch) const {
    if (in_place()) return {(T*)m.data + offset(unit, pixels), run.stride};
    return {scratch, width<T>};
  }
  void write(const Matrix& m, int64_t unit, int64_t pixels, const T* scratch) const {
    if (in_place()) return;
    const int64_t first = offset(unit, pixels);
    if (!Last) return narrow(scratch, pixels, m.dtype, m.data, first);
    for (int64_t s = 0; s < pixels; ++s)
      narrow(scratch + s * width<T>, lanes, m.dtype, m.data, first + s * run.shape.channels);
  }

  // The pixels of a unit of `m`, a matrix of pooled images, spread over their windows.
  Steps<const T> read_spread(const Matrix& m, int64_t unit) const {
    if (!m.data) return {nullptr, 0};
    T* const to = gradient_scratch + unit * run.pixels;
    const int64_t count = run.shape.pooled_pixels();
    if (!run.pools) return read_pixels(m, unit, run.pixels, run.pixels, to);
    const Steps<const T> from = read_pixels(m, unit, count, count, pooled);
    if (Last)
      spread_pixels(run.shape, from, to);
    else
      spread_plane(run.shape, from.data, rows, to);
    return {to, width<T>};
  }
  // The plane's windows averaged into a unit of `m`.
  void write_pooled(const Matrix& m, int64_t unit, const T* from) const {
    const int64_t count = run.shape.pooled_pixels();
    const Steps<T> to = target(m, unit, count, pooled);
    if (Last)
      pool_pixels(run.shape, from, to);
    else
      pool_plane(run.shape, from, rows, to.data);
    write(m, unit, count, pooled);
  }

  template <class Value>
  vec<T> coefficient(Value value) const {
    if (!Last) return splat((T)value(0));
    T values[width<T>] = {};
    for (int64_t k = 0; k < lanes; ++k) values[k] = (T)value(k);
    return load(values);
  }
  // A parameter of the unit's channel, or of the lanes' channels.
  T parameter(const Matrix& m, int64_t unit, int64_t lane, T otherwise) const {
    return m.data ? ((const T*)m.data)[first_channel + unit + lane] : otherwise;
  }
  T statistic(const Matrix& m, int64_t lane) const {
    return ((const T*)m.data)[image * run.shape.groups + group() + lane];
  }
  Activation<T> activation(const NormProblem& p, int64_t unit) const {
    return {coefficient([&](int64_t k) { return statistic(p.mean, k); }),
            coefficient([&](int64_t k) { return statistic(p.factor, k); }),
            coefficient([&](int64_t k) { return parameter(p.weight, unit, k, 1); }),
            coefficient([&](int64_t k) { return parameter(p.bias, unit, k, 0); }),
            run.shape.relu ? T(0) : (T)__builtin_nan("")};
  }

  void measure(const NormProblem& p, Steps<const T> x) const {
    Total mean{}, square{};
    const int64_t count = moments(x, run.group_extent(), mean, square);
    for (int64_t k = 0; k < lanes; ++k) {
      const int64_t at = image * run.shape.groups + group() + k;
      ((T*)p.mean.data)[at] = (T)mean.v[k];
      ((T*)p.factor.data)[at] = (T)(1 / __builtin_sqrt(square.v[k] / (double)count + run.shape.epsilon));
    }
  }

  void value(const NormArguments& a) const {
    const Steps<const T> x = read(a.problem.x, x_scratch);
    measure(a.problem, x);
    for (int64_t unit = 0; unit < run.units; ++unit) {
      const Activation<T> f = activation(a.problem, unit);
      const Steps<const T> from{x.data + unit * run.pixels, x.stride};
      if (Last) {  // the sums of windows stay in registers
        const Steps<T> to = target(a.out, unit, run.shape.pooled_pixels(), pooled);
        pool_each(run.shape, to, [&](int64_t pixel) { return f.value(load(from.at(pixel))); });
        write(a.out, unit, run.shape.pooled_pixels(), pooled);
        continue;
      }
      const Steps<T> to = run.pools ? Steps<T>{plane, width<T>} : target(a.out, unit, run.pixels, plane);
      for_steps(run.extent(), 0, run.extent().steps(), [&](int64_t k, auto lanes) {
        store(to.at(k), lanes, f.value(load(from.at(k), lanes, vec<T>{})));
      });
      run.pools ? write_pooled(a.out, unit, plane) : write(a.out, unit, run.pixels, plane);
    }
  }

  // weight, bias: sums of this image's gradients by them, (images, channels).
  void grad(const NormGradArguments& a, double* weight, double* bias) const {
    const Steps<const T> x = read(a.problem.x, x_scratch);
    const double count = (double)(run.units * run.pixels);
    Total mean{}, slope{};  // [w g], [w g h]
    for (int64_t unit = 0; unit < run.units; ++unit) {
      const Activation<T> f = activation(a.problem, unit);
      const Steps<const T> from{x.data + unit * run.pixels, x.stride}, g = read_spread(a.grad, unit);
      Total sums[2] = {};
      sum_steps<T, Last>(run.extent(), sums, [&](int64_t k, auto lanes, vec<T>(&to)[2]) {
        const vec<T> h = f.hat(load(from.at(k), lanes, f.centre)),
                     kept = f.kept(h, load(g.at(k), lanes, vec<T>{}));
        to[0] += kept;
        to[1] += kept * h;
      });
      for (int64_t k = 0; k < lanes; ++k) {
        const double w = (double)parameter(a.problem.weight, unit, k, 1);
        mean.v[k] += w * sums[0].v[k] / count;
        slope.v[k] += w * sums[1].v[k] / count;
        const int64_t at = image * run.shape.channels + first_channel + unit + k;
        bias[at] = sums[0].v[k];
        weight[at] = sums[1].v[k];
      }
    }
    if (!a.grad_x.data) return;
    for (int64_t unit = 0; unit < run.units; ++unit) {
      const Activation<T> f = activation(a.problem, unit);
      const vec<T> scale = f.factor * f.weight,
                   shift = f.factor * coefficient([&](int64_t k) { return mean.v[k]; }),
                   tilt = f.factor * coefficient([&](int64_t k) { return slope.v[k]; });
      const Steps<const T> from{x.data + unit * run.pixels, x.stride}, g = spread_again(a.grad, unit);
      const Steps<T> to = target(a.grad_x, unit, run.pixels, out_scratch);
      for_steps(run.extent(), 0, run.extent().steps(), [&](int64_t k, auto lanes) {
        const vec<T> h = f.hat(load(from.at(k), lanes, f.centre)),
                     kept = f.kept(h, load(g.at(k), lanes, vec<T>{}));
        store(to.at(k), lanes, kept * scale - shift - h * tilt);
      });
      write(a.grad_x, unit, run.pixels, out_scratch);
    }
  }

  // What read_spread() left behind.
  Steps<const T> spread_again(const Matrix& m, int64_t unit) const {
    if (!m.data) return {nullptr, 0};
    if (!run.pools && in_place()) return {(const T*)m.data + offset(unit, run.pixels), run.stride};
    return {gradient_scratch + unit * run.pixels, width<T>};
  }

  // weight: (images, channels), this image's sums of g q.
  void second(const NormSecondArguments& a, double* weight) const {
    const Steps<const T> x = read(a.problem.x, x_scratch), tangent = read(a.tangent_x, tangent_scratch);
    const double count = (double)(run.units * run.pixels);
    Means<T, Last> means{};
    for (int64_t unit = 0; unit < run.units; ++unit) {
      const Activation<T> f = activation(a.problem, unit);
      const Steps<const T> from{x.data + unit * run.pixels, x.stride}, g = read_spread(a.grad, unit);
      const Steps<const T> t{tangent.data ? tangent.data + unit * run.pixels : nullptr, tangent.stride};
      Total sums[5] = {};
      sum_steps<T, Last>(run.extent(), sums, [&](int64_t k, auto lanes, vec<T>(&to)[5]) {
        const vec<T> h = f.hat(load(from.at(k), lanes, f.centre)), kept = f.kept(h, given(g, k, lanes)),
                     moved = given(t, k, lanes);
        to[0] += kept;
        to[1] += kept * h;
        to[2] += moved;
        to[3] += moved * h;
        to[4] += moved * kept;
      });
      for (int64_t k = 0; k < lanes; ++k) {
        const double sum[5] = {sums[0].v[k], sums[1].v[k], sums[2].v[k], sums[3].v[k], sums[4].v[k]};
        means.add(k, sum, (double)parameter(a.problem.weight, unit, k, 1) / count,
                  (double)parameter(a.tangent_weight, unit, k, 0) / count, 1 / count);
        if (!weight) continue;
        double* kept = weight + 3 * (image * run.shape.channels + first_channel + unit + k);
        kept[0] = sum[4], kept[1] = sum[0], kept[2] = sum[1];
      }
    }
    // sum g q = f (sum t g - [t] sum g - [t h] sum g h), with means that are known only now.
    for (int64_t unit = 0; weight && unit < run.units; ++unit)
      for (int64_t k = 0; k < lanes; ++k) {
        double* kept = weight + 3 * (image * run.shape.channels + first_channel + unit + k);
        kept[0] -= means.t.v[k] * kept[1] + means.th.v[k] * kept[2];
        kept[0] *= (double)statistic(a.problem.factor, k);
      }
    for (int64_t unit = 0; unit < run.units; ++unit) second_unit(a, x, tangent, means, unit);
  }

  void second_unit(const NormSecondArguments& a, Steps<const T> x, Steps<const T> tangent,
                   const Means<T, Last>& m, int64_t unit) const {
    const Activation<T> f = activation(a.problem, unit);
    const Steps<const T> from{x.data + unit * run.pixels, x.stride}, g = spread_again(a.grad, unit);
    const Steps<const T> t{tangent.data ? tangent.data + unit * run.pixels : nullptr, tangent.stride};
    const auto factor = [&](int64_t k) { return (double)statistic(a.problem.factor, k); };
    const auto w = [&](int64_t k) { return (double)parameter(a.problem.weight, unit, k, 1); };
    const auto u = [&](int64_t k) { return (double)parameter(a.tangent_weight, unit, k, 0); };
    const Linear<T> by_x{
        coefficient([&](int64_t k) { return factor(k) * u(k) - factor(k) * factor(k) * m.th.v[k] * w(k); }),
        coefficient([&](int64_t k) { return -factor(k) * factor(k) * m.wgh.v[k]; }),
        coefficient([&](int64_t k) { return m.by_hat(k, factor(k)); }),
        coefficient([&](int64_t k) { return m.constant(k, factor(k)); })};
    const Linear<T> by_grad{vec<T>{}, coefficient([&](int64_t k) { return factor(k) * w(k); }),
                            coefficient([&](int64_t k) { return u(k) - factor(k) * w(k) * m.th.v[k]; }),
                            coefficient([&](int64_t k) {
                              return (double)parameter(a.tangent_bias, unit, k, 0) -
                                     factor(k) * w(k) * m.t.v[k];
                            })};
    const Steps<T> to_x = target(a.out_x, unit, run.pixels, out_scratch);
    const Steps<T> to_grad =
        run.pools ? Steps<T>{plane, width<T>} : target(a.out_grad, unit, run.pixels, plane);
    for_steps(run.extent(), 0, run.extent().steps(), [&](int64_t k, auto lanes) {
      const vec<T> h = f.hat(load(from.at(k), lanes, f.centre)), moved = given(t, k, lanes);
      if (a.out_x.data) store(to_x.at(k), lanes, by_x.of(f.kept(h, given(g, k, lanes)), moved, h));
      if (a.out_grad.data) store(to_grad.at(k), lanes, f.kept(h, by_grad.of(vec<T>{}, moved, h)));
    });
    if (a.out_x.data) write(a.out_x, unit, run.pixels, out_scratch);
    if (!a.out_grad.data) return;
    run.pools ? write_pooled(a.out_grad, unit, plane) : write(a.out_grad, unit, run.pixels, plane);
  }

  template <class Lanes>
  DECOCT_INLINE_MEMBER vec<T> given(Steps<const T> steps, int64_t k, Lanes lanes) const {
    return steps.data ? load(steps.at(k), lanes, vec<T>{}) : vec<T>{};
  }
};

}  // namespace DECOCT_ISA
}  // namespace decoct
