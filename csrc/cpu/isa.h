// One function table for each instruction set; the best that the processor has is chosen once.
#pragma once
#include "../interface.h"

namespace decoct::cpu {

struct Engine {
  const char* name;
  void (*kernel_sums)(const SumsArguments&, const Execution&);
  void (*kernel_sums_hvp)(const HvpArguments&, const Execution&);
  void (*kernel_matvec)(const MatvecArguments&, const Execution&);
  void (*segment_sums)(const Clouds&, const Matrix&, const Execution&);
  void (*sinkhorn)(const SinkhornArguments&, const Execution&);
  void (*mean_bandwidth)(const Clouds&, const Execution&);
  int64_t (*workspace_bytes)(const Sizes&, int64_t chunks, int64_t tasks);
  void (*group_norm)(const NormArguments&, const Execution&);
  void (*group_norm_grad)(const NormGradArguments&, const Execution&);
  void (*group_norm_second)(const NormSecondArguments&, const Execution&);
  int64_t (*group_norm_workspace_bytes)(NormOp, const NormShape&, DType, int);
  void (*gradient_distance)(const GradientArguments&, const Execution&);
  void (*segment_outer)(const SegmentOuterArguments&, const Execution&);
  int64_t (*segment_outer_bytes)(const SegmentOuterArguments&);  // of one thread
  void (*image_squares)(const ImageSquaresArguments&, const Execution&);
  int64_t (*image_squares_bytes)(const LayerPair&);  // of one thread
  void (*image_gram)(const ImageGramArguments&, const Execution&);
  int64_t (*image_gram_bytes)(const ImageGramArguments&, int threads);
  void (*random_projection)(const RandomProjectionArguments&, const Execution&);
  int64_t (*random_projection_bytes)(const RandomProjectionArguments&);  // of one thread
  void (*characteristic)(const CharacteristicArguments&, const Execution&);
  int64_t (*characteristic_workspace)(const CharacteristicArguments&);
  void (*barycenter)(const BarycenterArguments&, const Execution&);
  int64_t (*barycenter_workspace_bytes)(const BarycenterArguments&, int);
};

extern const Engine engine_generic;
#if defined(__x86_64__)
extern const Engine engine_avx2, engine_avx512;
#endif

// DECOCT_ISA=generic|avx2|avx512 forces one (std::runtime_error if the processor lacks it).
const Engine& engine();

}  // namespace decoct::cpu
