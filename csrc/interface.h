// The whole C++ interface of decoct: plain structs over memory that the caller owns.
// Nothing here allocates results, knows Python or torch, or differs between backends.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace decoct {

enum class DType : int32_t { float32, float64, float16, bfloat16, int64, int32, uint8 };

// Row-major rows with unit stride inside a row; `stride` counts elements from one row to the next.
struct Matrix {
  void* data = nullptr;
  int64_t rows = 0, columns = 0, stride = 0;
  DType dtype = DType::float32;
};

enum class Profile : int32_t {
  gaussian,
  laplacian,
  energy,
  inverse_multiquadric,
  rational_quadratic,
  polynomial,
  linear
};

constexpr bool is_radial(Profile p) {
  return p != Profile::polynomial && p != Profile::linear;
}

constexpr int kMaxScales = 16;

struct Kernel {
  Profile profile = Profile::gaussian;
  double parameter = 0;  // alpha of the rational quadratic, gamma of the polynomial
  double offset = 0;     // coef0 of the polynomial
  int degree = 1;        // of the polynomial
  int scales = 1;        // the kernel is summed over s^2 -> scale[l] s^2
  double scale[kMaxScales] = {1};
};

// Which arguments want a derivative.
enum Need : int { kNeedX = 1, kNeedY = 2, kNeedA = 4, kNeedB = 8 };
// Which blocks of the pooled kernel matrix have a nonzero coefficient.
enum Term : int { kTermXX = 1, kTermXY = 2, kTermYY = 4 };
enum class Op : int32_t { sums, hvp, matvec };

struct Sizes {
  Op op = Op::sums;
  DType rows = DType::float32;
  int64_t segments = 0, dim = 0, columns = 1;
  const int64_t* x_offsets = nullptr;  // (segments + 1), host memory
  const int64_t* y_offsets = nullptr;
  int need = 0, terms = 0, threads = 1;
};

// A plan is a list of rounds, each a list of tasks that may run at once: tasks of one round never add into
// the same memory, and rounds run in order. It depends on shapes only, so results do not depend on the number
// of threads.
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

struct ScheduleHeader {
  int32_t version, rounds, tasks, chunks, terms, need;
};
constexpr int32_t kScheduleVersion = 1;

// ScheduleHeader, the first task of every round and the number of tasks (rounds + 1), then the tasks, all as
// int32.
struct Plan {
  std::vector<int32_t> schedule;
  int64_t workspace_bytes = 0;
};

// Validates offsets and sizes (std::invalid_argument) and lays out the work. The workspace holds scratch for
// each thread.
Plan plan(const Sizes& sizes);

struct Clouds {
  Matrix x, y, a, b;  // a.data == nullptr: uniform weights
  const int64_t *x_offsets, *y_offsets;
  int64_t segments;
  double* bandwidth;  // (segments)
  Kernel kernel;
};

struct Execution {
  const int32_t* schedule = nullptr;
  int64_t schedule_length = 0;
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  int threads = 1;
  void* stream = nullptr;
};

struct SumsArguments {
  Clouds clouds;
  const double* coefficients;  // (segments, 3): of the xx, xy and yy sums
  bool bandwidth_from_data;
  int need;
  double* value;  // (segments)
  Matrix grad_x, grad_y, grad_a, grad_b;
};

struct HvpArguments {
  Clouds clouds;
  const double* coefficients;
  int need;
  Matrix tangent_x, tangent_y, tangent_a, tangent_b;  // data == nullptr: zero
  Matrix out_x, out_y, out_a, out_b;
};

struct MatvecArguments {
  Clouds clouds;
  Matrix v, out;
};

void kernel_sums(const SumsArguments& arguments, const Execution& execution);
void kernel_sums_hvp(const HvpArguments& arguments, const Execution& execution);
void kernel_matvec(const MatvecArguments& arguments, const Execution& execution);
void segment_sums(const Matrix& x, const Matrix& a, const int64_t* offsets, int64_t segments,
                  const Matrix& out, const Execution& execution);
void mean_bandwidth(const Clouds& clouds, const Execution& execution);
std::string isa_name();

}  // namespace decoct
