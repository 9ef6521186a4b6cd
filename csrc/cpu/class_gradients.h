// What csrc/cpu/class_gradients.cpp has for the engine of its instruction set.
#pragma once
#include "../interface.h"

namespace decoct {
namespace DECOCT_ISA {

void segment_outer(const SegmentOuterArguments& arguments, const Execution& execution);
int64_t segment_outer_bytes(const SegmentOuterArguments& arguments);

}  // namespace DECOCT_ISA
}  // namespace decoct
