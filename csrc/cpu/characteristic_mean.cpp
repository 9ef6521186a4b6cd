// Characteristic means for one instruction set: compiled once for each, as engine.cpp is.
#include "characteristic_mean.inl"

#include "characteristic_mean.h"

namespace decoct {
namespace DECOCT_ISA {

void characteristic(const CharacteristicArguments& a, const Execution& e) {
  a.type() == DType::float64 ? Characteristic<double>(a, e).run() : Characteristic<float>(a, e).run();
}

int64_t characteristic_workspace(const CharacteristicArguments& a) {
  return a.type() == DType::float64 ? characteristic_bytes<double>(a) : characteristic_bytes<float>(a);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
