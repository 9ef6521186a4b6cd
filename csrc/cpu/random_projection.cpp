// Random projections for one instruction set: compiled once for each, as engine.cpp is.
#include "random_projection.inl"

#include "random_projection.h"

namespace decoct {
namespace DECOCT_ISA {

void random_projection(const RandomProjectionArguments& a, const Execution& e) {
  a.type() == DType::float64 ? run_random_projection<double>(a, e) : run_random_projection<float>(a, e);
}

int64_t random_projection_bytes(const RandomProjectionArguments& a) {
  return a.type() == DType::float64 ? projection_bytes<double>() : projection_bytes<float>();
}

}  // namespace DECOCT_ISA
}  // namespace decoct
