// What norm.cpp gives to the engine of its instruction set.
#pragma once
#include "../interface.h"

namespace decoct::DECOCT_ISA {

void group_norm(const NormArguments& arguments, const Execution& execution);
void group_norm_grad(const NormGradArguments& arguments, const Execution& execution);
void group_norm_second(const NormSecondArguments& arguments, const Execution& execution);
int64_t norm_workspace_bytes(NormOp op, const NormShape& shape, DType rows, int threads);

}  // namespace decoct::DECOCT_ISA
