// Barycentres for one instruction set: compiled once for each, as engine.cpp is.
#include "barycenter.inl"

#include "barycenter.h"

namespace decoct {
namespace DECOCT_ISA {

void barycenter(const BarycenterArguments& a, const Execution& e) {
  a.x.dtype == DType::float64 ? run_barycenter<double>(a, e) : run_barycenter<float>(a, e);
}

int64_t barycenter_workspace_bytes(const BarycenterArguments& a, int threads) {
  return a.x.dtype == DType::float64 ? barycenter_bytes<double>(a, threads)
                                     : barycenter_bytes<float>(a, threads);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
