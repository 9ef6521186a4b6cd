// The sizes of a call, and what every backend's plan() checks first.
#include <climits>
#include <stdexcept>

#include "interface.h"

namespace decoct {
namespace {

void check_offsets(const int64_t* offsets, int64_t segments, const char* name) {
  if (offsets[0] != 0) throw std::invalid_argument(std::string(name) + " must start at 0");
  for (int64_t c = 0; c < segments; ++c) {
    if (offsets[c + 1] < offsets[c]) throw std::invalid_argument(std::string(name) + " must not decrease");
    if (offsets[c + 1] - offsets[c] > INT32_MAX - 4096)
      throw std::invalid_argument(std::string(name) + " must give segments of fewer than 2^31 rows");
  }
}

}  // namespace

Sizes sizes_of(Op op, const Clouds& clouds, int64_t columns, int need, int terms, int threads,
               int64_t cost_budget) {
  Sizes s;
  s.op = op;
  s.rows = clouds.x.dtype;
  s.segments = clouds.segments;
  s.dim = clouds.x.columns;
  s.columns = columns;
  s.x_offsets = clouds.x_offsets;
  s.y_offsets = clouds.y_offsets;
  s.need = need;
  s.terms = terms;
  s.threads = threads;
  s.cost_budget = cost_budget;
  return s;
}

void check_sizes(const Sizes& s) {
  if (s.cost_budget < 0) throw std::invalid_argument("plan: cost_budget must not be negative");
  if (s.segments < 0 || s.dim < 0 || s.columns < 1 || s.threads < 1)
    throw std::invalid_argument("plan: sizes must not be negative, columns and threads at least 1");
  check_offsets(s.x_offsets, s.segments, "x_offsets");
  check_offsets(s.y_offsets, s.segments, "y_offsets");
}

}  // namespace decoct
