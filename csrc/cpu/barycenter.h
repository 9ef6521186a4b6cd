// What csrc/cpu/barycenter.cpp has for the engine of its instruction set.
#pragma once
#include "../interface.h"

namespace decoct {
namespace DECOCT_ISA {

void barycenter(const BarycenterArguments& arguments, const Execution& execution);
int64_t barycenter_workspace_bytes(const BarycenterArguments& arguments, int threads);

}  // namespace DECOCT_ISA
}  // namespace decoct
