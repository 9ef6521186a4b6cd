// Given to the compiler before the kernels (-include): tells kernels_test which of them are launched, so that
// one that no case reaches is an error.
#pragma once

#define launch launch_uncounted
#include "cuda_on_cpu.h"
#undef launch

extern "C" void note_launch(const void* kernel);

namespace decoct::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& l, const Arguments&... arguments) {
  if (l.blocks > 0) note_launch((const void*)kernel);
  launch_uncounted(kernel, l, arguments...);
}

}  // namespace decoct::cuda
