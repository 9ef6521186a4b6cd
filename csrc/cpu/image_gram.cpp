// Inner products of per-sample gradients for one instruction set: compiled once for each, as engine.cpp is.
#include "image_gram.inl"

#include "per_sample.h"

namespace decoct {
namespace DECOCT_ISA {

void image_gram(const ImageGramArguments& a, const Execution& e) {
  a.x.type == DType::float64 ? run_image_gram<double>(a, e) : run_image_gram<float>(a, e);
}

int64_t image_gram_bytes(const ImageGramArguments& a, int threads) {
  return a.x.type == DType::float64 ? gram_bytes<double>(a, threads) : gram_bytes<float>(a, threads);
}

}  // namespace DECOCT_ISA
}  // namespace decoct
