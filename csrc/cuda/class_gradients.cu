// How class gradients are cut into blocks, and their launches.
#include "layer_problem.h"

#include <algorithm>
#include <cstring>

namespace decoct {
namespace cuda {
namespace {

constexpr int32_t kOuterVersion = 1;
constexpr int64_t kWantedBlocks = 1024;    // several for each multiprocessor
constexpr int64_t kLeastPositions = 2048;  // of a part

// The schedule: the header, the segments, the tasks. `slabs`: how many.
std::vector<int32_t> make_schedule(const SegmentOuterArguments& a, int64_t& slabs) {
  const OuterCuts cuts(a.activations, a.gradients, a.convolution, a.type);
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

template <class T>
OuterProblem<T> problem_of(const SegmentOuterArguments& a, const Execution& e) {
  OuterProblem<T> p = layer_problem<T>(a.activations, a.gradients, a.convolution, a.type);
  p.weights = (const T*)a.weights.data;
  p.segments = (const OuterSegment*)(e.device_schedule + sizeof(ScheduleHeader) / 4);
  p.tasks = (const OuterTask*)(p.segments + a.segments);
  p.weight = (T*)a.weight.data;
  p.bias = (T*)a.bias.data;
  p.slabs = (T*)e.workspace;
  p.weight_stride = a.weight.stride;
  p.bias_stride = a.bias.stride;
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
  plan.workspace_bytes = slabs *
                         cuda::OuterCuts(a.activations, a.gradients, a.convolution, a.type).slab_stride *
                         (a.type == DType::float64 ? 8 : 4);
  return plan;
}

void segment_outer(const SegmentOuterArguments& a, const Execution& e) {
  a.type == DType::float64 ? cuda::run_outer<double>(a, e) : cuda::run_outer<float>(a, e);
}

}  // namespace decoct
