// Weight gradients of a convolution or a linear layer, one for each segment of images:
//
//   G_c[o, k] = sum_it w_i d_i[o, t] a_i[patch k of t]       a (N, C, H, W), d (N, P, H', W'), G (P, D)
//
//   operations   2 N T P D, T = H' W'; three times that in 3xTF32
//   bytes        a number of d is read D / 64 times, one of a for every place of the kernel and P / 64 times,
//                nearly all from cache; G is written once, and once more for every part of a segment
//   bound        the products: P = 128, D = 1152, N T = 655360 (ten classes of 256 16 x 16 images) 0.19
//   Tflop,
//                3.7 ms in 3xTF32 on A100, 1.2 ms on H100
//
// A block owns a 64 x 64 tile of one segment's G (32 x 64 in float64) for a part of its images. Positions t
// pass through shared memory 32 at a time, both operands stored along t. Patches are read where they are:
// what a position adds to an address, and what a place of the kernel adds, stand in small tables in shared
// memory, of which a thread needs one entry or a few for all the numbers that it brings in: the numbers of
// one position or, where channels lie side by side, those of one or two channels. While one step is
// multiplied, the numbers of the next are on their way to registers, from where they are weighted, rounded
// and stored. A second kernel adds the parts of a segment in their order.
#pragma once
#include <type_traits>

#include "score.cuh"

namespace decoct::cuda {

struct OuterSegment {
  int32_t first_task, tasks;
};
struct OuterTask {
  int32_t segment, begin, end;  // its images
  int32_t slab;                 // whom it writes to; -1: the result, where it is all of the segment
};

struct OuterImages {
  const void* data;
  int64_t image;
  int32_t channel, row, column;  // strides
  DType dtype;
  int32_t channels_last;
};

template <class T>
struct OuterProblem {
  OuterImages a, d;
  const T* weights;
  const OuterSegment* segments;
  const OuterTask* tasks;
  T *weight, *bias, *slabs;  // a slab: weight, then bias
  int64_t weight_stride, bias_stride, slab_stride;
  int32_t height, width, made_height, made_width;
  int32_t kernel[2], stride[2], padding[2], dilation[2];
  int32_t channels, outputs, patch, groups;  // of one group
  int32_t output_tiles, patch_tiles;
};

template <class T>
constexpr Shape outer_shape = sizeof(T) == 8 ? Shape::medium : Shape::square;
template <class Point>
constexpr int kOuterStep = sizeof(Point) == 8 ? 16 : 32;  // positions

// What a position adds to addresses, an entry in one load. Rows and columns of images are counted modulo
// 2^32, so that one comparison tells both sides; what is not there begins nowhere.
constexpr uint32_t kNowhere = 0x60000000;
struct alignas(16) PatchPlace {
  int64_t offset;
  uint32_t y, x;
};
template <class T>
struct alignas(16) OutputPlace {
  int64_t offset;  // negative: there is none
  T weight;
};
// The same of a place of the kernel.
struct alignas(16) OuterTap {
  int32_t offset;
  uint32_t y, x;
};

template <class A>
constexpr int outer_stage() {
  using Tile = ScoreTile<outer_shape<typename A::T>>;
  return (Tile::kRows + Tile::kColumns) * row_pitch<typename A::Point>(kOuterStep<typename A::Point>);
}
template <class A>
constexpr int outer_shared() {
  using Point = typename A::Point;
  return 2 * outer_stage<A>() * (int)sizeof(Point) +
         2 * kOuterStep<Point> * (int)(sizeof(PatchPlace) + sizeof(OutputPlace<typename A::T>)) +
         ScoreTile<outer_shape<typename A::T>>::kColumns * (int)sizeof(OuterTap);
}

// The elements of a tile of `Rows` x positions that a thread brings in. Where positions lie side by side in
// memory a warp takes 32 of them, or 16 of two rows. Where rows do, it takes 8 rows of 4 positions: whole
// sectors there, and different banks here.
template <int Rows, int Step, bool AlongRows>
struct OuterShare {
  static constexpr int kCount = Rows * Step / kThreads;
  int row, position;

  DECOCT_DEVICE OuterShare() {
    const int t = thread_index();
    row = AlongRows ? t / 32 * 8 + t % 8 : t / Step;
    position = AlongRows ? t / 8 % 4 : t % Step;
  }
  // use(k, row, position) for each of them.
  template <class Use>
  DECOCT_DEVICE void each(Use use) const {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if (AlongRows)
        use(k, row + k / (Step / 4) * (8 * kWarps), position + k % (Step / 4) * 4);
      else
        use(k, row + k * (kThreads / Step), position);
    }
  }
};

// use(std::true_type) or use(std::false_type).
template <class Use>
DECOCT_DEVICE void with_constant(bool value, Use use) {
  if (value)
    use(std::true_type{});
  else
    use(std::false_type{});
}

template <class A>
struct OuterBlock {
  using T = typename A::T;
  using Point = typename A::Point;
  using Tile = ScoreTile<outer_shape<T>>;
  static constexpr int kStep = kOuterStep<Point>, kPitch = row_pitch<Point>(kStep);
  template <bool AlongRows>
  using Left = OuterShare<Tile::kRows, kStep, AlongRows>;
  template <bool AlongRows>
  using Right = OuterShare<Tile::kColumns, kStep, AlongRows>;
  static constexpr int kLeft = Left<false>::kCount, kRight = Right<false>::kCount;

  const OuterProblem<T>& p;
  const OuterTask task;
  int group, first_output, first_column;
  Point* stages;
  PatchPlace* patch_places;
  OutputPlace<T>* output_places;
  OuterTap* taps;
  int image, pixel;  // of the position that this thread looks up next

  DECOCT_DEVICE OuterBlock(const OuterProblem<T>& problem, const OuterTask& t, Shared& shared, int tile)
      : p(problem), task(t) {
    stages = shared.take<Point>(2 * outer_stage<A>());
    patch_places = shared.take<PatchPlace>(2 * kStep);
    output_places = shared.take<OutputPlace<T>>(2 * kStep);
    taps = shared.take<OuterTap>(Tile::kColumns);
    first_column = tile % p.patch_tiles * Tile::kColumns;
    first_output = tile / p.patch_tiles % p.output_tiles * Tile::kRows;
    group = tile / p.patch_tiles / p.output_tiles;
    image = task.begin;
    pixel = thread_index();
  }

  DECOCT_DEVICE int pixels() const { return p.made_height * p.made_width; }
  DECOCT_DEVICE int64_t steps() const {
    return ((int64_t)(task.end - task.begin) * pixels() + kStep - 1) / kStep;
  }
  DECOCT_DEVICE Point* left(int64_t step) const { return stages + step % 2 * outer_stage<A>(); }
  DECOCT_DEVICE Point* right(int64_t step) const { return left(step) + Tile::kRows * kPitch; }

  DECOCT_DEVICE void set_taps() const {
    for (int k = thread_index(); k < Tile::kColumns; k += kThreads) {
      const int column = first_column + k, x = column % p.kernel[1] * p.dilation[1];
      const int y = column / p.kernel[1] % p.kernel[0] * p.dilation[0];
      const int channel = group * p.channels + column / (p.kernel[0] * p.kernel[1]);
      if (column < p.patch)
        taps[k] = {channel * p.a.channel + y * p.a.row + x * p.a.column, (uint32_t)y, (uint32_t)x};
      else
        taps[k] = {0, kNowhere, 0};
    }
  }

  // Of one step after another.
  DECOCT_DEVICE void set_places(int64_t step) {
    const int k = thread_index();
    if (k >= kStep) return;
    if (pixel >= pixels()) {
      image += pixel / pixels();
      pixel %= pixels();
    }
    PatchPlace patch{0, kNowhere, 0};
    OutputPlace<T> output{-1, T(0)};
    if (image < task.end) {
      const int i = pixel / p.made_width, j = pixel % p.made_width;
      const int y = i * p.stride[0] - p.padding[0], x = j * p.stride[1] - p.padding[1];
      patch = {image * p.a.image + (int64_t)y * p.a.row + (int64_t)x * p.a.column, (uint32_t)y, (uint32_t)x};
      output = {image * p.d.image + (int64_t)i * p.d.row + (int64_t)j * p.d.column +
                    (int64_t)(group * p.outputs) * p.d.channel,
                p.weights ? p.weights[image] : T(1)};
    }
    patch_places[step % 2 * kStep + k] = patch;
    output_places[step % 2 * kStep + k] = output;
    pixel += kStep;
  }

  // The numbers of a step, whose places are set, to registers.
  DECOCT_DEVICE void fetch(int64_t step, T (&outputs)[kLeft], T (&patches)[kRight]) const {
    with_constant(p.d.channels_last, [&](auto along_rows) {
      with_numbers<T>(p.d, [&](const auto* numbers, auto widen) {
        const OutputPlace<T>* at = output_places + step % 2 * kStep;
        Left<decltype(along_rows)::value>().each([&](int k, int row, int position) {
          const OutputPlace<T> place = at[position];
          const int output = first_output + row;
          const bool there = place.offset >= 0 && output < p.outputs;
          const int64_t channel = (int64_t)output * p.d.channel;
          outputs[k] = there ? place.weight * widen(numbers[place.offset + channel]) : T(0);
        });
      });
    });
    with_constant(p.a.channels_last, [&](auto along_rows) {
      with_numbers<T>(p.a, [&](const auto* numbers, auto widen) {
        const PatchPlace* at = patch_places + step % 2 * kStep;
        Right<decltype(along_rows)::value>().each([&](int k, int row, int position) {
          const PatchPlace place = at[position];
          const OuterTap tap = taps[row];
          const bool there = place.y + tap.y < (uint32_t)p.height && place.x + tap.x < (uint32_t)p.width;
          patches[k] = there ? widen(numbers[place.offset + tap.offset]) : T(0);
        });
      });
    });
  }

  // bfloat16 is rounded once, as it is stored.
  static DECOCT_DEVICE Point rounded(T value) {
    return A::point(sizeof(Point) == 2 ? value : A::weight(value));
  }

  DECOCT_DEVICE void store(int64_t step, const T (&outputs)[kLeft], const T (&patches)[kRight]) const {
    with_constant(p.d.channels_last, [&](auto along_rows) {
      Left<decltype(along_rows)::value>().each(
          [&](int k, int row, int position) { left(step)[row * kPitch + position] = rounded(outputs[k]); });
    });
    with_constant(p.a.channels_last, [&](auto along_rows) {
      Right<decltype(along_rows)::value>().each(
          [&](int k, int row, int position) { right(step)[row * kPitch + position] = rounded(patches[k]); });
    });
  }

  DECOCT_DEVICE T* weight_target() const {
    return task.slab < 0 ? p.weight + task.segment * p.weight_stride : p.slabs + task.slab * p.slab_stride;
  }
  DECOCT_DEVICE T* bias_target() const {
    return task.slab < 0 ? p.bias + task.segment * p.bias_stride
                         : p.slabs + task.slab * p.slab_stride + (int64_t)p.groups * p.outputs * p.patch;
  }

  // Output first_output + thread's bias, 0 where there is none. Through shared memory, which nobody reads any
  // more: every place of a step has its sum there.
  DECOCT_DEVICE double bias_of_thread(const T (&sums)[kLeft]) const {
    T* slots = (T*)stages;
    with_constant(p.d.channels_last, [&](auto along_rows) {
      Left<decltype(along_rows)::value>().each(
          [&](int k, int row, int position) { slots[row * kStep + position] = sums[k]; });
    });
    sync_block();
    const int row = thread_index();
    if (row >= Tile::kRows || first_output + row >= p.outputs) return 0;
    double total = 0;
    for (int position = 0; position < kStep; ++position)
      total += (double)slots[row * kStep + (position + row) % kStep];
    return total;
  }

  DECOCT_DEVICE void write_bias(const T (&sums)[kLeft]) const {
    const double total = bias_of_thread(sums);
    const int row = thread_index(), output = first_output + row;
    if (row < Tile::kRows && output < p.outputs) bias_target()[group * p.outputs + output] = (T)total;
  }

  DECOCT_DEVICE void write(const T (&sums)[Tile::kM][Tile::kN][4]) const {
    T* target = weight_target() + (int64_t)(group * p.outputs) * p.patch;
    Tile::each(sums, [&](int i, int j, T sum) {
      const int output = first_output + i, column = first_column + j;
      if (output < p.outputs && column < p.patch) target[(int64_t)output * p.patch + column] = sum;
    });
  }
};

// Adds all positions of a block's images to its tile of G, and d alone to what becomes the bias.
template <class A>
DECOCT_DEVICE void add_positions(OuterBlock<A>& block, bool with_bias,
                                 typename A::T (&sums)[OuterBlock<A>::Tile::kM][OuterBlock<A>::Tile::kN][4],
                                 typename A::T (&bias)[OuterBlock<A>::kLeft]) {
  using Block = OuterBlock<A>;
  using T = typename A::T;
  using Tile = typename Block::Tile;
  const int64_t steps = block.steps();
  block.set_taps();
  if (steps > 0) block.set_places(0);
  sync_block();
  T outputs[Block::kLeft] = {}, patches[Block::kRight] = {};
  // Of the step before it, each pass stores what came, and of the one before that it forms the products.
  for (int64_t step = 0; step <= steps; ++step) {
    if (step < steps) block.fetch(step, outputs, patches);
    if (step > 0)
      A::multiply_rows(sums, block.left(step - 1) + Tile::row() * Block::kPitch, Block::kPitch,
                       block.right(step - 1) + Tile::column() * Block::kPitch, Block::kPitch, Block::kStep);
    // Not before the products: the warp would wait for an image's weight, and with it for all numbers.
    if (step + 1 < steps) block.set_places(step + 1);
    if (step < steps) {
      block.store(step, outputs, patches);
      if (with_bias) {
#pragma unroll
        for (int k = 0; k < Block::kLeft; ++k) bias[k] += outputs[k];
      }
    }
    sync_block();
  }
}

template <class A>
DECOCT_KERNEL outer_kernel(OuterProblem<typename A::T> p) {
  using Block = OuterBlock<A>;
  using T = typename A::T;
  using Tile = typename Block::Tile;
  Shared shared;
  const int tiles = p.groups * p.output_tiles * p.patch_tiles;
  Block block(p, p.tasks[block_index() / tiles], shared, block_index() % tiles);
  const bool with_bias = p.bias && block.first_column == 0;
  T bias[Block::kLeft] = {}, sums[Tile::kM][Tile::kN][4] = {};
  add_positions<A>(block, with_bias, sums, bias);
  block.write(sums);
  if (with_bias) block.write_bias(bias);
}

constexpr int kCombined = 4 * kThreads;  // elements of a block

// Adds the parts of segments of which there are several, and zeros those that have none.
template <class T>
DECOCT_KERNEL combine_kernel(OuterProblem<T> p, int blocks_of_segment) {
  const int c = block_index() / blocks_of_segment;
  const OuterSegment segment = p.segments[c];
  if (segment.tasks == 1) return;
  const int64_t weights = (int64_t)p.groups * p.outputs * p.patch;
  const int64_t end = weights + (p.bias ? p.groups * p.outputs : 0);
  const int64_t first = (int64_t)(block_index() % blocks_of_segment) * kCombined;
  for (int64_t k = first + thread_index(); k < end && k < first + kCombined; k += kThreads) {
    T total = T(0);
    for (int t = 0; t < segment.tasks; ++t)
      total += p.slabs[p.tasks[segment.first_task + t].slab * p.slab_stride + k];
    (k < weights ? p.weight + c * p.weight_stride + k : p.bias + c * p.bias_stride + (k - weights))[0] =
        total;
  }
}

}  // namespace decoct::cuda
