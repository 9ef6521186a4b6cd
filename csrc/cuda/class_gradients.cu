// How class gradients are cut into blocks, and their launches.
#include "class_gradients.cuh"

#include <algorithm>
#include <cstring>

namespace decoct {
namespace cuda {
namespace {

constexpr int32_t kOuterVersion = 1;
constexpr int64_t kWantedBlocks = 1024;    // several for each multiprocessor
constexpr int64_t kLeastPositions = 2048;  // of a part

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct OuterCuts {
  int64_t outputs, channels, patch, output_tiles, patch_tiles, slab_stride;

  explicit OuterCuts(const SegmentOuterArguments& a) {
    const Convolution& c = a.convolution;
    outputs = a.gradients.channels / c.groups;
    channels = a.activations.channels / c.groups;
    patch = channels * c.kernel[0] * c.kernel[1];
    const Shape shape = a.type == DType::float64 ? outer_shape<double> : outer_shape<float>;
    output_tiles = ceil_div(outputs, tile_rows(shape));
    // The first one adds the bias too.
    patch_tiles = std::max<int64_t>(ceil_div(patch, tile_columns(shape)), 1);
    slab_stride = a.gradients.channels * (patch + 1);
  }
};

// The schedule: the header, the segments, the tasks. `slabs`: how many.
std::vector<int32_t> make_schedule(const SegmentOuterArguments& a, int64_t& slabs) {
  const OuterCuts cuts(a);
  const int64_t tiles = std::max<int64_t>(a.convolution.groups * cuts.output_tiles * cuts.patch_tiles, 1);
  const int64_t positions = std::max<int64_t>(a.gradients.height * a.gradients.width, 1);
  const int64_t most = std::max({ceil_div(kLeastPositions, positions),
                                 ceil_div(a.gradients.count, ceil_div(kWantedBlocks, tiles)), int64_t{1}});
  std::vector<OuterSegment> segments;
  std::vector<OuterTask> tasks;
  slabs = 0;
  for (int64_t c = 0; c < a.segments; ++c) {
    const int64_t begin = a.offsets[c], images = a.offsets[c + 1] - begin, parts = ceil_div(images, most);
    segments.push_back({(int32_t)tasks.size(), (int32_t)parts});
    for (int64_t part = 0; part < parts; ++part)
      tasks.push_back({(int32_t)c, (int32_t)(begin + part * images / parts),
                       (int32_t)(begin + (part + 1) * images / parts), parts == 1 ? -1 : (int32_t)slabs++});
  }
  const size_t head = sizeof(ScheduleHeader), middle = segments.size() * sizeof(OuterSegment),
               tail = tasks.size() * sizeof(OuterTask);
  std::vector<int32_t> words((head + middle + tail) / 4);
  auto& header = *(ScheduleHeader*)words.data();
  header.version = kOuterVersion;
  header.words = (int32_t)words.size();
  header.tasks = (int32_t)tasks.size();
  header.chunks = (int32_t)a.segments;
  if (middle) std::memcpy((char*)words.data() + head, segments.data(), middle);
  if (tail) std::memcpy((char*)words.data() + head + middle, tasks.data(), tail);
  return words;
}

OuterImages images_of(const Images& m) {
  const bool last = m.channels > 1 && m.strides[1] == 1 && (m.width == 1 || m.strides[3] != 1);
  return {m.data,  m.strides[0], (int32_t)m.strides[1], (int32_t)m.strides[2], (int32_t)m.strides[3],
          m.dtype, last};
}

template <class T>
OuterProblem<T> problem_of(const SegmentOuterArguments& a, const Execution& e) {
  const OuterCuts cuts(a);
  const Convolution& c = a.convolution;
  OuterProblem<T> p{};
  p.a = images_of(a.activations);
  p.d = images_of(a.gradients);
  p.weights = (const T*)a.weights.data;
  p.segments = (const OuterSegment*)(e.device_schedule + sizeof(ScheduleHeader) / 4);
  p.tasks = (const OuterTask*)(p.segments + a.segments);
  p.weight = (T*)a.weight.data;
  p.bias = (T*)a.bias.data;
  p.slabs = (T*)e.workspace;
  p.weight_stride = a.weight.stride;
  p.bias_stride = a.bias.stride;
  p.slab_stride = cuts.slab_stride;
  p.height = (int32_t)a.activations.height;
  p.width = (int32_t)a.activations.width;
  p.made_height = (int32_t)a.gradients.height;
  p.made_width = (int32_t)a.gradients.width;
  for (int k = 0; k < 2; ++k) {
    p.kernel[k] = (int32_t)c.kernel[k];
    p.stride[k] = (int32_t)c.stride[k];
    p.padding[k] = (int32_t)c.padding[k];
    p.dilation[k] = (int32_t)c.dilation[k];
  }
  p.channels = (int32_t)cuts.channels;
  p.outputs = (int32_t)cuts.outputs;
  p.patch = (int32_t)cuts.patch;
  p.groups = (int32_t)c.groups;
  p.output_tiles = (int32_t)cuts.output_tiles;
  p.patch_tiles = (int32_t)cuts.patch_tiles;
  return p;
}

template <class A>
void launch_outer(const OuterProblem<typename A::T>& p, int64_t tasks, void* stream) {
  const int64_t tiles = (int64_t)p.groups * p.output_tiles * p.patch_tiles;
  launch(outer_kernel<A>, {tasks * tiles, kThreads, outer_shared<A>(), stream}, p);
}

template <class T>
void launch_combine(const OuterProblem<T>& p, int64_t segments, void* stream) {
  const int64_t blocks = ceil_div(p.slab_stride, kCombined);
  launch(combine_kernel<T>, {segments * blocks, kThreads, 0, stream}, p, (int)blocks);
}

template <class T>
void run_outer(const SegmentOuterArguments& a, const Execution& e) {
  const OuterProblem<T> p = problem_of<T>(a, e);
  const auto& header = *(const ScheduleHeader*)e.schedule;
  if constexpr (sizeof(T) == 8) {
    launch_outer<Scalar<double>>(p, header.tasks, e.stream);
  } else if (e.precision == Precision::highest) {
    launch_outer<Tf32x3>(p, header.tasks, e.stream);
  } else if (e.precision == Precision::high) {
    launch_outer<Tf32>(p, header.tasks, e.stream);
  } else {
    launch_outer<Bfloat16>(p, header.tasks, e.stream);
  }
  const auto* segments = (const OuterSegment*)(e.schedule + sizeof(ScheduleHeader) / 4);
  if (std::any_of(segments, segments + a.segments, [](const OuterSegment& s) { return s.tasks != 1; }))
    launch_combine<T>(p, a.segments, e.stream);
}

}  // namespace
}  // namespace cuda

Plan plan_segment_outer(const SegmentOuterArguments& a, int threads) {
  check_segment_outer(a, threads);
  Plan plan;
  int64_t slabs = 0;
  plan.schedule = cuda::make_schedule(a, slabs);
  plan.workspace_bytes = slabs * cuda::OuterCuts(a).slab_stride * (a.type == DType::float64 ? 8 : 4);
  return plan;
}

void segment_outer(const SegmentOuterArguments& a, const Execution& e) {
  a.type == DType::float64 ? cuda::run_outer<double>(a, e) : cuda::run_outer<float>(a, e);
}

}  // namespace decoct
