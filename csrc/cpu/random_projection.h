// What csrc/cpu/random_projection.cpp has for the engine of its instruction set.
#pragma once
#include "../interface.h"

namespace decoct {
namespace DECOCT_ISA {

void random_projection(const RandomProjectionArguments& arguments, const Execution& execution);
int64_t random_projection_bytes(const RandomProjectionArguments& arguments);  // of one thread

}  // namespace DECOCT_ISA
}  // namespace decoct
