// Class gradients for one instruction set: compiled once for each, as engine.cpp is.
#include "class_gradients.inl"

#include "class_gradients.h"

namespace decoct {
namespace DECOCT_ISA {

void segment_outer(const SegmentOuterArguments& a, const Execution& e) {
  a.type == DType::float64 ? run_segment_outer<double>(a, e) : run_segment_outer<float>(a, e);
}

int64_t segment_outer_bytes(const SegmentOuterArguments& a) {
  return a.type == DType::float64 ? outer_scratch_bytes<double>(a) : outer_scratch_bytes<float>(a);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
