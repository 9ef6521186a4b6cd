// What kernels on a layer's activations and output gradients are given, filled in on the host.
#pragma once
#include <algorithm>

#include "class_gradients.cuh"

namespace decoct {
namespace cuda {

// Of kernels whose work follows from their arguments.
inline Plan plan_of(int64_t workspace_bytes) {
  Plan plan;
  plan.schedule.resize(sizeof(ScheduleHeader) / 4);
  auto& header = *(ScheduleHeader*)plan.schedule.data();
  header.version = kCudaScheduleVersion;
  header.words = (int32_t)plan.schedule.size();
  plan.workspace_bytes = workspace_bytes;
  return plan;
}

struct OuterCuts {
  int64_t outputs, channels, patch, output_tiles, patch_tiles, slab_stride;

  OuterCuts(const Images& activations, const Images& gradients, const Convolution& c, DType type) {
    outputs = gradients.channels / c.groups;
    channels = activations.channels / c.groups;
    patch = channels * c.kernel[0] * c.kernel[1];
    const Shape shape = type == DType::float64 ? outer_shape<double> : outer_shape<float>;
    output_tiles = ceil_div(outputs, tile_rows(shape));
    // The first one adds the bias too.
    patch_tiles = std::max<int64_t>(ceil_div(patch, tile_columns(shape)), 1);
    slab_stride = gradients.channels * (patch + 1);
  }
};

inline OuterImages images_of(const Images& m) {
  const bool last = m.channels > 1 && m.strides[1] == 1 && (m.width == 1 || m.strides[3] != 1);
  return {m.data,  m.strides[0], (int32_t)m.strides[1], (int32_t)m.strides[2], (int32_t)m.strides[3],
          m.dtype, last};
}

// All but what the results are and how the images are cut into tasks.
template <class T>
OuterProblem<T> layer_problem(const Images& activations, const Images& gradients, const Convolution& c,
                              DType type) {
  const OuterCuts cuts(activations, gradients, c, type);
  OuterProblem<T> p{};
  p.a = images_of(activations);
  p.d = images_of(gradients);
  p.slab_stride = cuts.slab_stride;
  p.height = (int32_t)activations.height;
  p.width = (int32_t)activations.width;
  p.made_height = (int32_t)gradients.height;
  p.made_width = (int32_t)gradients.width;
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

}  // namespace cuda
}  // namespace decoct
