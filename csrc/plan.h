// How one segment is cut up: the rules that the plan and the engine must agree on.
#pragma once
#include <algorithm>

#include "interface.h"

namespace decoct {

// Rows of a chunk or block are multiples of 96, which every instruction set's panel and tile divides.
constexpr int64_t kBlockUnit = 96, kChunkRows = 5 * kBlockUnit;

struct SegmentRule {
  int64_t n, m;            // rows of x and y
  bool empty;              // nothing to compute
  bool whole;              // small: one task does all of it
  bool streamed;           // whole, and x passes through a buffer: it needs no derivative and meets only y
  bool rows_are_x;         // orientation of the cross block
  int splits;              // column splits of the cross block, each with a slab of accumulators
  int x_strips, y_strips;  // slabs that share a differentiated symmetric term; 0: it goes by rounds
  bool x_is_columns, y_is_columns;

  int x_slabs() const { return std::max(x_strips, rows_are_x ? splits : 1); }
  int y_slabs() const { return std::max(y_strips, rows_are_x ? 1 : splits); }
};

// Strips of a triangle get shorter downwards: dealt forth and back, every slab gets about the same work.
inline int strip_slab(int64_t strip, int64_t slabs) {
  const int64_t place = strip % (2 * slabs);
  return (int)(place < slabs ? place : 2 * slabs - 1 - place);
}

SegmentRule segment_rule(const Sizes& sizes, int64_t segment);

// Scratch that the CPU engine needs for these sizes and a schedule with so many chunks.
int64_t cpu_workspace_bytes(const Sizes& sizes, int64_t chunks, int64_t tasks);

}  // namespace decoct
