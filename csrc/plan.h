// How one segment is cut up: the rules that the plan and the engine must agree on.
#pragma once
#include "interface.h"

namespace decoct {

// Rows of a chunk or block are multiples of 96, which every instruction set's panel and tile divides.
constexpr int64_t kBlockUnit = 96, kChunkRows = 5 * kBlockUnit;

struct SegmentRule {
  int64_t n, m;     // rows of x and y
  bool empty;       // nothing to compute
  bool whole;       // small: one task does all of it
  bool rows_are_x;  // orientation of the cross block
  int slabs;        // column splits of the cross block, each with accumulators of its own
  bool x_is_columns, y_is_columns;
};

SegmentRule segment_rule(const Sizes& sizes, int64_t segment);

// Scratch that the CPU engine needs for these sizes and a schedule with so many chunks.
int64_t cpu_workspace_bytes(const Sizes& sizes, int64_t chunks, int64_t tasks);

}  // namespace decoct
