// How a call is cut into thread blocks: the layout of a CUDA schedule, which the host makes (plan.cpp), the
// launchers walk and the kernels read. It depends on shapes only, never on the device.
#pragma once
#include "../interface.h"

namespace decoct::cuda {

constexpr int32_t kCudaScheduleVersion = 1002;

constexpr int kThreads = 128;  // of a block; races are searched for at this size
constexpr int kWarps = kThreads / 32;
constexpr int kRowUnit = 16;         // packed rows are padded to so many columns
constexpr int kSmallDim = 16;        // below it distances are made by differences
constexpr int kSmallDoubleDim = 9;   // the same for float64, where more columns leave no registers
constexpr int kFusedDim = 256;       // up to it scores, weights and gradient stay on chip
constexpr int kWeightColumns = 256;  // of one task's weights in scratch
constexpr int64_t kWeightBytes = int64_t{32} << 20;  // of all weights in scratch at a time

enum class Path : int32_t { small, fused, weights };

// The tile of the score kernels: square 64 x 64; narrow 16 x 128 where segments have few rows; medium 32 x 64
// where a lane has much to keep, in float64 and for Hessian-vector products.
enum class Shape : int32_t { square, narrow, medium };
constexpr int tile_rows(Shape s) {
  return s == Shape::square ? 64 : s == Shape::narrow ? 16 : 32;
}
constexpr int tile_columns(Shape s) {
  return s == Shape::narrow ? 128 : 64;
}

// Rows of a block of the fused kernel and columns of its tiles, for D padded to 32, 64, 128 or 256: as many
// as leave the gradient sums at most 128 registers a thread, and tiles that fit twice into 99 KiB.
constexpr int kFusedRows = 32;
constexpr int fused_width(int64_t dim) {
  return dim <= 32 ? 32 : dim <= 64 ? 64 : dim <= 128 ? 128 : 256;
}
constexpr int fused_columns(int width) {
  return width <= 128 ? 64 : 32;
}

// Of the kernel for small D: two rows a thread, the columns of a tile dealt to the warps.
constexpr int kSmallRows = 64, kSmallColumns = 64;

enum class Stage : int32_t { score, fused, small, product };

// One kernel launch over tasks [first, first + count).
struct Round {
  Stage stage;
  Shape shape;
  int32_t first, count;
  int32_t scores;  // product: the first task of the score launch that filled the scratch
  int32_t unused;
};

struct SegmentPlan {
  int64_t x_begin, y_begin;
  int32_t n, m;
  int32_t first_chunk, chunks;  // its preparation, x then y
  int32_t first_value, values;  // its partial values
  int32_t x_slab, y_slab;       // first rows of the slabs of x and y: slab k starts k * rows later
  int32_t x_slabs, y_slabs;
  int32_t x_cross_slabs, y_cross_slabs;  // of these, the first: those of the cross term
};

enum TaskFlag : int32_t {
  kRowsX = 1,
  kColumnsX = 2,
  kGradient = 4,  // accumulate the derivative by the rows' points
  kRowSums = 8,   // and by their weights
  kCount = 16,    // contributes to the value
  kTwice = 32     // off the diagonal of a symmetric term of which one half is computed
};

struct Task {
  int32_t segment, flags, row_begin, row_end, col_begin, col_end;
  int32_t slab;   // row of the slabs that belongs to row_begin
  int32_t value;  // where its partial value goes; product: one past its last score task, col_begin the first
};

// A chunk of rows of one side: for preparation, and for the end of a call.
struct Chunk {
  int32_t segment, on_x, row_begin, row_end;
};

// One term of a transport problem: rows of one side against columns of one side. Its costs are kept, and one
// block does all of its iterations, or every iteration is a launch for all terms that do not.
struct Term {
  int64_t kept;  // the first of its costs, (rows, cost_pitch(columns)); -1: they are not kept
  int64_t row_sums, column_sums;  // the first of the slabs of sums over its rows and columns
  int32_t segment, kind;          // kind: its place among the segment's terms xx, xy and yy
  int32_t rows_x, columns_x, rows, columns;
  int32_t row_slabs, column_slabs;
  int32_t first_chunk, chunks;  // of its steps
};
constexpr int kTermKinds = 3;
constexpr int cost_pitch(int columns) {
  return (columns + 31) / 32 * 32;
}

// A block of pairs of a term, row tile by row tile; column_slab -1: no sums over its columns.
struct TransportTask {
  int32_t term, row_begin, row_end, col_begin, col_end, row_slab, column_slab, unused;
};

// Rows of one side of a term, a thread each.
struct StepChunk {
  int32_t term, on_rows, begin, end;
};

struct Header {
  ScheduleHeader common;  // rounds, tasks, chunks
  int32_t path, finish_chunks, values, slab_rows;
  int32_t scratch_tasks, scratch_shape;  // most tasks whose weights are in scratch at a time, and their tile
  // Of transport: those whose costs are kept come first among the terms and their tasks.
  int32_t terms, kept_terms, transport_tasks, kept_tasks, steps, kept_rows;  // kept_rows: most of both sides
  int64_t kept, sums;                                                        // numbers
};
static_assert(sizeof(Header) % 8 == 0);

// The parts of a schedule, on whichever side `words` is.
struct ScheduleView {
  const Header* header;
  const Round* rounds;
  const SegmentPlan* segments;
  const Task* tasks;
  const Chunk* chunks;  // of preparation, then of the end
  const Term* terms;
  const TransportTask* transport_tasks;
  const StepChunk* steps;
};

inline ScheduleView view_schedule(const int32_t* words, const Header& h, int64_t segments) {
  ScheduleView v;
  const char* p = (const char*)words;
  v.header = (const Header*)p;
  v.rounds = (const Round*)(p += sizeof(Header));
  v.segments = (const SegmentPlan*)(p += sizeof(Round) * h.common.rounds);
  v.tasks = (const Task*)(p += sizeof(SegmentPlan) * segments);
  v.chunks = (const Chunk*)(p += sizeof(Task) * h.common.tasks);
  v.terms = (const Term*)(p += sizeof(Chunk) * (h.common.chunks + h.finish_chunks));
  v.transport_tasks = (const TransportTask*)(p += sizeof(Term) * h.terms);
  v.steps = (const StepChunk*)(p += sizeof(TransportTask) * h.transport_tasks);
  return v;
}
inline int64_t schedule_words(const Header& h, int64_t segments) {
  return (int64_t)(sizeof(Header) + sizeof(Round) * h.common.rounds + sizeof(SegmentPlan) * segments +
                   sizeof(Task) * h.common.tasks + sizeof(Chunk) * (h.common.chunks + h.finish_chunks) +
                   sizeof(Term) * h.terms + sizeof(TransportTask) * h.transport_tasks +
                   sizeof(StepChunk) * h.steps) /
         4;
}

Path choose_path(const Sizes& sizes);

}  // namespace decoct::cuda
