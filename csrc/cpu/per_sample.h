// What csrc/cpu/image_squares.cpp and image_gram.cpp have for the engine of their instruction set.
#pragma once
#include "../interface.h"

namespace decoct {
namespace DECOCT_ISA {

void image_squares(const ImageSquaresArguments& arguments, const Execution& execution);
int64_t image_squares_bytes(const LayerPair& pair);  // of one thread

void image_gram(const ImageGramArguments& arguments, const Execution& execution);
int64_t image_gram_bytes(const ImageGramArguments& arguments, int threads);

}  // namespace DECOCT_ISA
}  // namespace decoct
