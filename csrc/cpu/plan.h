// The CPU's schedule, and how one segment is cut up: the rules that the plan and the engine must agree on.
#pragma once
#include <algorithm>

#include "../interface.h"

namespace decoct {

constexpr int32_t kScheduleVersion = 2;

// A schedule is a list of rounds, each a list of tasks that may run at once: tasks of one round never add
// into the same memory, and rounds run in order. Behind the header: the first task of every round and the
// number of tasks (rounds + 1), then the tasks.
enum class TaskKind : int32_t {
  whole,      // a small segment from start to end
  centre,     // column sums of a chunk of rows
  anchor,     // the segment's centre from those sums
  pack,       // centred, widened, transposed copies of a chunk of rows
  calibrate,  // bandwidth and kernel constants of the segment
  block,      // rows x columns of the kernel matrix
  strips,     // a slab's share of a symmetric term: strip_slab() == slot of row_end slabs
  finish      // derivatives of a chunk of rows to the caller's memory
};

struct Task {
  TaskKind kind;
  int32_t segment, row_begin, row_end, col_begin, col_end;
  int32_t slot;  // whose partial sums it writes: a chunk's (centre, pack), or the slab of its accumulators
                 // (block, strips)
  int32_t flags;
};
enum TaskFlag : int32_t {
  kOnX = 1,        // chunk tasks: rows of x, else of y; block tasks: rows from x, else from y
  kColumnsX = 2,   // block tasks: columns from x, else from y
  kRowSide = 4,    // accumulate derivatives of the row cloud
  kColumnSide = 8  // accumulate derivatives of the column cloud
};

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

}  // namespace decoct
