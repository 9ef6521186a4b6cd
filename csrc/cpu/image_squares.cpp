// Norms of per-sample gradients for one instruction set: compiled once for each, as engine.cpp is.
#include "image_squares.inl"

#include "per_sample.h"

namespace decoct {
namespace DECOCT_ISA {

void image_squares(const ImageSquaresArguments& a, const Execution& e) {
  a.pair.type == DType::float64 ? run_image_squares<double>(a, e) : run_image_squares<float>(a, e);
}

int64_t image_squares_bytes(const LayerPair& pair) {
  return pair.type == DType::float64 ? squares_scratch_bytes<double>(pair)
                                     : squares_scratch_bytes<float>(pair);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
