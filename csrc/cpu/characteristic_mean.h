// What csrc/cpu/characteristic_mean.cpp has for the engine of its instruction set.
#pragma once
#include "../interface.h"

namespace decoct {
namespace DECOCT_ISA {

void characteristic(const CharacteristicArguments& arguments, const Execution& execution);
int64_t characteristic_workspace(const CharacteristicArguments& arguments);

}  // namespace DECOCT_ISA
}  // namespace decoct
