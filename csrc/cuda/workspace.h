// Where everything lies in the workspace of a CUDA call.
#pragma once
#include "../kernel_profiles.h"
#include "schedule.h"

namespace decoct::cuda {

// What preparation leaves for the kernels, one for each segment.
template <class T>
struct SegmentState {
  ProfileConstants<T> constants;
  double spread;   // the power of two by which extreme coordinates are divided; 1 otherwise
  int32_t broken;  // a row is not finite: the segment's results are NaN
};

// What transport does next with a term: `start` and `settle` at the largest eps, `anneal` on its way down,
// then `last` and, until the marginals are met, `repeat` at the smallest; `whole` is the step whose result
// counts.
enum class Pass : int32_t { start, settle, anneal, last, repeat, whole, done };

struct TransportState {
  double eps;    // of the next pass
  double shift;  // of partial transport, the multiplier of its mass
  double value, missed;
  double centre;  // of a balanced cross term: what f is above the potentials with a @ f == b @ g, and g below
  Pass pass;
  int32_t iterations;
  int32_t parity, unused;  // parity: which of the two potentials the next pass starts from
};

// Offsets in bytes. Arrays of pairs: of x, of y; of pairs of pairs: those of the cross term, of the self
// term.
struct WorkspaceLayout {
  int64_t tickets;                   // int (segments); with the next two, zero before the first kernel
  int64_t slabs;                     // T (slab_rows, slab_stride): what the gradient products add up to
  int64_t sums;                      // double (slab_rows, kRowSumKinds)
  int64_t zeroed;                    // bytes from the start
  int64_t states;                    // SegmentState (segments)
  int64_t centres, tangent_centres;  // T (segments, dim)
  int64_t chunk_norms, chunk_sums;   // double (chunks), (chunks, dim)
  int64_t partials;                  // double (values)
  int64_t points[2], norms[2], weights[2];  // points, tangents, vectors: with room for T, also if bfloat16
  int64_t tangents[2], dots[2], tangent_weights[2];  // of Hessian-vector products
  int64_t vectors;                                   // (rows of y, slab_stride), of products with vectors
  int64_t scratch;
  // Of transport. Potentials: double (2, rows). Biases: T (rows), T (labels, rows).
  int64_t term_tickets, box_tickets, term_sums;  // zero before the first kernel
  int64_t term_states, bandwidth, coefficients, shifts, boxes, step_partials, kept;
  int64_t potentials[2][2], row_bias[2][2], column_bias[2][2];
  int64_t bytes;
  int64_t stride, slab_stride;  // elements of a packed row and of a row of a slab
};

// Sums over a row: of k; of weights, or of their change; of weights as a base.
constexpr int kRowSumKinds = 3;
constexpr int kStepSums = 3;                     // of a chunk of a step: mass missed, mass, value
constexpr int kNearWords = kWeightColumns / 32;  // marks of one row of a task

inline int64_t padded_row(int64_t columns) {
  return (columns + kRowUnit - 1) / kRowUnit * kRowUnit;
}

// One task's scratch: its weights (two sets of them for Hessian-vector products), its row sums, and the marks
// of its near pairs, before which a word tells in what column tiles there are any.
constexpr int64_t weight_elements(Shape shape) {
  return (int64_t)tile_rows(shape) * kWeightColumns;
}
inline int64_t scratch_bytes(const Sizes& s, Shape shape) {
  const int64_t element = s.rows == DType::float64 ? 8 : 4;
  return weight_elements(shape) * element * (s.op == Op::hvp ? 2 : 1) + tile_rows(shape) * kRowSumKinds * 8 +
         (4 + tile_rows(shape) * kNearWords) * 4;
}
inline int64_t weight_tasks(const Sizes& s, Shape shape) {
  return kWeightBytes / scratch_bytes(s, shape);
}

inline WorkspaceLayout workspace_layout(const Sizes& s, const Header& h) {
  const int64_t element = s.rows == DType::float64 ? 8 : 4;
  const int64_t rows[2] = {s.x_offsets[s.segments], s.y_offsets[s.segments]};
  WorkspaceLayout w{};
  const auto take = [&w](int64_t count, int64_t size) {
    const int64_t at = w.bytes;
    w.bytes += (count * size + 255) / 256 * 256;
    return at;
  };
  const bool pairs = s.op != Op::rows, added = pairs && h.path == (int32_t)Path::weights;
  w.stride = padded_row(s.dim);
  w.slab_stride = s.op == Op::matvec ? padded_row(s.columns) : w.stride;
  w.tickets = take(s.segments, 4);
  if (s.op == Op::sinkhorn) {
    w.term_tickets = take(h.terms, 4);
    w.box_tickets = take(s.segments, 4);
    w.term_sums = take(h.sums, 8);
  }
  if (!added) w.zeroed = w.bytes;
  w.slabs = take(h.slab_rows * w.slab_stride, element);
  w.sums = take((int64_t)h.slab_rows * kRowSumKinds, 8);
  if (added) w.zeroed = w.bytes;
  w.states =
      take(s.segments, s.rows == DType::float64 ? sizeof(SegmentState<double>) : sizeof(SegmentState<float>));
  w.centres = take(s.segments * s.dim, element);
  w.chunk_norms = take(h.common.chunks, 8);
  w.chunk_sums = take(h.common.chunks * s.dim, 8);
  w.partials = take(h.values, 8);
  if (s.op == Op::hvp) w.tangent_centres = take(s.segments * s.dim, element);
  for (int side = 0; side < 2 && pairs; ++side) {
    w.points[side] = take(rows[side] * w.stride, element);
    w.norms[side] = take(rows[side], element);
    w.weights[side] = take(rows[side], element);
    if (s.op != Op::hvp) continue;
    w.tangents[side] = take(rows[side] * w.stride, element);
    w.dots[side] = take(rows[side], element);
    w.tangent_weights[side] = take(rows[side], element);
  }
  if (s.op == Op::matvec) w.vectors = take(rows[1] * w.slab_stride, element);
  w.scratch = take(h.scratch_tasks, scratch_bytes(s, (Shape)h.scratch_shape));
  if (s.op != Op::sinkhorn) return w;
  w.term_states = take(s.segments * kTermKinds, sizeof(TransportState));
  w.bandwidth = take(s.segments, 8);
  w.coefficients = take(s.segments * kTermKinds, 8);
  w.shifts = take(s.segments * kTermKinds, 8);
  w.boxes = take(h.common.chunks * 2 * s.dim, element);
  w.step_partials = take(h.steps * (int64_t)kStepSums, 8);
  w.kept = take(h.kept, element);
  for (int side = 0; side < 2; ++side)
    for (int term = 0; term < 2; ++term) {
      w.potentials[side][term] = take(2 * rows[side], 8);
      w.row_bias[side][term] = take(rows[side], element);
      w.column_bias[side][term] = take(s.columns * rows[side], element);
    }
  return w;
}

}  // namespace decoct::cuda
