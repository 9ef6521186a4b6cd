// The whole C++ interface of decoct: plain structs over memory that the caller owns.
// Nothing here allocates results, knows Python or torch, or differs between backends.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace decoct {

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

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
// rows: what is reduced over the rows of each cloud on its own (segment_sums, mean_bandwidth).
enum class Op : int32_t { sums, hvp, matvec, rows, sinkhorn };
// Of products on a tensor core: float32, TF32 or bfloat16. The CPU always computes in the rows' precision.
enum class Precision : int32_t { highest, high, medium };

struct Sizes {
  Op op = Op::sums;
  DType rows = DType::float32;
  int64_t segments = 0, dim = 0, columns = 1;
  const int64_t* x_offsets = nullptr;  // (segments + 1), host memory
  const int64_t* y_offsets = nullptr;
  int need = 0, terms = 0, threads = 1;
  int64_t cost_budget = 0;  // of sinkhorn: bytes for costs that are kept from one iteration to the next
};

// How a call is cut up, as int32 words: this header, then what the backend that made it lays out (cpu/plan.h,
// cuda/schedule.h). It depends on shapes only, so that results do not depend on the number of threads or on
// the device.
struct ScheduleHeader {
  int32_t version, words, need, terms, tasks, rounds, chunks, kept_mebibytes;
};

struct Plan {
  std::vector<int32_t> schedule;
  int64_t workspace_bytes = 0;
};

// Throws std::invalid_argument where sizes or offsets cannot be.
void check_sizes(const Sizes& sizes);
// Checks the sizes and lays out the work; the workspace is scratch for the whole call.
Plan plan(const Sizes& sizes);
// What plan() asked for with this schedule; std::invalid_argument where it was made for another call.
int64_t workspace_bytes(const Sizes& sizes, const int32_t* schedule, int64_t words);

struct Clouds {
  Matrix x, y, a, b;  // a.data == nullptr: uniform weights
  const int64_t *x_offsets, *y_offsets;
  int64_t segments;
  double* bandwidth;  // (segments)
  Kernel kernel;
  // Of a gaussian or laplacian kernel with one scale: k_ij becomes exp(f_i + g_j) k_ij, which is a transport
  // plan where f and g are its potentials over eps. data == nullptr: none
  Matrix f, g;
};

// What a call on these clouds is planned for.
Sizes sizes_of(Op op, const Clouds& clouds, int64_t columns, int need, int terms, int threads,
               int64_t cost_budget = 0);

struct Execution {
  const int32_t* schedule = nullptr;         // in host memory
  const int32_t* device_schedule = nullptr;  // a copy where the kernels run
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  int threads = 1;
  Precision precision = Precision::highest;
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

// Entropic optimal transport of every segment's x to its y; the kernel's profile tells the cost: gaussian |x
// - y|^2 / 2, laplacian |x - y|. Where `terms` has them, the terms of x and of y with themselves are solved
// too and subtracted by halves. CUDA has launches for annealing from a diameter of 2^20 blurs, or from the
// given one; from further away eps falls to the last one at once. Where both marginals are kept, the
// potentials are those with a @ f == b @ g.
struct SinkhornArguments {
  Clouds clouds;
  Matrix x_labels, y_labels;       // (N,), (M,) int64; data == nullptr: none
  Matrix label_cost;               // (L, L) float64, symmetric: added to the cost of rows with these labels
  double blur, scaling, diameter;  // diameter: 0: of the box around the rows
  double reach_x, reach_y;         // lengths; infinite: the marginal is kept
  double mass;                     // that is transported, without self terms; 0: all
  double tolerance;                // of the marginals; 0: the schedule of eps alone
  int max_iterations;
  bool warm;  // the potentials come with values to start from
  int need, terms;
  double *value, *error;        // (segments)
  int64_t* iterations;          // (segments): of the term that took the most
  Matrix f, g, f_self, g_self;  // potentials
  Matrix grad_x, grad_y;
};

// Free-support barycentres. Group g has the measures measure_offsets[g] ... and the points point_offsets[g]
// ...; measure m is rows x_offsets[m] ... of x. Points and masses come with what to begin from. The CPU alone
// has it: on CUDA it is made of calls of sinkhorn.
struct BarycenterArguments {
  Matrix x, a;  // a.data == nullptr: uniform weights
  const int64_t *x_offsets, *measure_offsets, *point_offsets;
  int64_t measures, groups;
  const double* shares;              // (measures): their weights in their group, not negative
  Matrix points, masses;             // (K, D), (K)
  bool learned;                      // whether the masses move
  double first_blur, blur, scaling;  // of the first turn, of the last ones, and the factor by which it falls
  double step;                       // of the way to the barycentric map that points go
  double tolerance;                  // of their movement
  double marginal_tolerance;         // of the plans of masses that do not move
  int iterations, inner_iterations;
  double *cost, *movement;  // (groups)
  int64_t* made;            // (groups): turns
};

void check_barycenter(const BarycenterArguments& arguments, int threads);
int64_t barycenter_workspace_bytes(const BarycenterArguments& arguments, int threads);
void barycenter(const BarycenterArguments& arguments, const Execution& execution);

// A distance of two lists of parameter gradients, of every class at once.
//   row_cosine  sum over rows of 1 - <a, b> / (|a| |b|)     cosine     the same of the list as one row
//   cosine_l2   row_cosine + sum over rows of |a - b|       sse        |a - b|^2
//   l1          sum |a - b|                                 l1_mean    sum over rows of the mean of |a - b|
enum class GradientMetric : int32_t { row_cosine, cosine, cosine_l2, sse, l1, l1_mean };
// product: |a| |b| + epsilon; clamp: max(|a|, epsilon) max(|b|, epsilon).
enum class EpsilonForm : int32_t { product, clamp };

// A tensor of one class, without gaps: row r is what lies at [:, r, :].
struct GradientShape {
  int64_t outer, rows, inner;
};

// What a task has of a tensor: elements; whole rows; whole rows of stride 1, whose elements are apart; or a
// piece of a row that is too long for one task, or of a list that is one row. Of the last, a first task sums
// up and a second one writes.
enum class GradientCut : int32_t { elements, rows, columns, pieces };

struct GradientPart {
  GradientShape shape;
  int64_t offset;             // elements of a class in the tensors before
  int64_t first_task, tasks;  // of a class
  int64_t size;               // elements, rows or columns of a task
  GradientCut cut;
};

struct GradientLayout {
  GradientMetric metric = GradientMetric::row_cosine;
  EpsilonForm form = EpsilonForm::product;
  double epsilon = 0;
  DType dtype = DType::float32;
  int64_t classes = 0, elements = 0, tasks = 0;  // elements, tasks: of a class
  bool pieces = false;                           // whether any part is cut into pieces
  std::vector<GradientPart> parts;

  // Partial values, or partial sums of rows in pieces, and a value of each class.
  int64_t workspace_bytes() const {
    return classes * (tasks * (pieces ? 9 : 1) + 1) * (int64_t)sizeof(double);
  }
};

// Checks the sizes and cuts the tensors up, by their shapes alone. Throws std::invalid_argument.
GradientLayout gradient_layout(GradientMetric metric, EpsilonForm form, double epsilon, DType dtype,
                               int64_t classes, const std::vector<GradientShape>& shapes);

// Tensors are (classes, shape) each. What is flat has them one behind the other, in the type of computation.
struct GradientArguments {
  const GradientLayout* layout;
  const GradientPart* parts;  // the layout's
  int64_t part_count;
  const void *const *real, *const *synthetic;
  void* value;                                   // (classes); nullptr with tangents
  const void *tangent_real, *tangent_synthetic;  // flat; nullptr: the gradient is wanted, else its derivative
  void *out_real, *out_synthetic;                // flat; nullptr: not wanted
};

void gradient_distance(const GradientArguments& arguments, const Execution& execution);

// Images (N, C, H, W), channels in `groups` of equal size; rows of numbers are images of height 1. Their
// memory has no gaps, and is that of (N, H, W, C) where channels_last, which needs a group for each channel.
struct NormShape {
  int64_t images, channels, groups, height, width;
  int64_t pool_height, pool_width;  // windows of the averages; what fills none at the far edges is dropped
  bool relu, channels_last;
  double epsilon;

  int64_t pixels() const { return height * width; }
  int64_t pooled_height() const { return height / pool_height; }
  int64_t pooled_width() const { return width / pool_width; }
  int64_t pooled_pixels() const { return pooled_height() * pooled_width(); }
};

// pool(relu(weight (x - mean) factor + bias)), mean and factor those of an image's group. x and what has its
// shape or the result's have one dtype, the others the type it is computed in; matrices have a row for each
// image. data == nullptr: weight 1, bias 0.
struct NormProblem {
  NormShape shape;
  Matrix x, weight, bias;  // weight, bias: (C, 1)
  Matrix mean, factor;     // (N, groups); factor = 1 / sqrt(variance + epsilon)
};

struct NormArguments {
  NormProblem problem;  // mean and factor are written
  Matrix out;
};

// The products of grad with the derivatives of the result; data == nullptr: not wanted.
struct NormGradArguments {
  NormProblem problem;
  Matrix grad;
  Matrix grad_x, grad_weight, grad_bias;
};

// The derivatives of <tangent_x, grad_x> + <tangent_weight, grad_weight> + <tangent_bias, grad_bias> of above
// by grad, x and weight; data == nullptr: a tangent of zero, a derivative that is not wanted.
struct NormSecondArguments {
  NormProblem problem;
  Matrix grad;  // data == nullptr: only out_grad is wanted
  Matrix tangent_x, tangent_weight, tangent_bias;
  Matrix out_grad, out_x, out_weight;
};

enum class NormOp : int32_t { value, grad, second };

int64_t group_norm_workspace_bytes(NormOp op, const NormShape& shape, DType rows, int threads);
void group_norm(const NormArguments& arguments, const Execution& execution);
void group_norm_grad(const NormGradArguments& arguments, const Execution& execution);
void group_norm_second(const NormSecondArguments& arguments, const Execution& execution);

// (count, channels, height, width) by strides of elements, none negative. Rows of tokens are images one pixel
// high.
struct Images {
  void* data = nullptr;
  int64_t count = 0, channels = 0, height = 0, width = 0;
  int64_t strides[4] = {};
  DType dtype = DType::float32;
};

struct Convolution {  // height first
  int64_t kernel[2], stride[2], padding[2], dilation[2], groups;
};

// Weight and bias gradients of a convolution, summed over the images i of every segment c and over their
// positions t, where patch k of t is what the kernel sees from there:
//   weight_c[o, k] = sum_it w_i d_i[o, t] a_i[patch k of t],    bias_c[o] = sum_it w_i d_i[o, t]
struct SegmentOuterArguments {
  Images activations, gradients;  // a and d, of any floating-point types
  Matrix weights;                 // w (N,); data == nullptr: ones
  Convolution convolution;
  const int64_t* offsets;  // (segments + 1), host memory
  int64_t segments;
  DType type;           // float64, or float32 for all others
  Matrix weight, bias;  // (segments, outputs * patch), (segments, outputs); bias.data == nullptr: not wanted
};

// Pointers to numbers are not read.
Plan plan_segment_outer(const SegmentOuterArguments& arguments, int threads);
void check_segment_outer(const SegmentOuterArguments& arguments, int threads);
void segment_outer(const SegmentOuterArguments& arguments, const Execution& execution);

// What a layer has multiplied: a and d of every image, as above.
struct LayerPair {
  Images activations, gradients;
  Convolution convolution;
  DType type;  // float64, or float32 for all others
};
void check_layer_pair(const LayerPair& pair, int threads);

// Squared norms of the gradients G_i and g_i that each image alone gives the weight and the bias.
struct ImageSquaresArguments {
  LayerPair pair;
  Matrix weight, bias;  // (N, 1) each; bias.data == nullptr: not wanted
};

// Pointers to numbers are not read.
Plan plan_image_squares(const LayerPair& pair, int threads);
void image_squares(const ImageSquaresArguments& arguments, const Execution& execution);

// Inner products of such gradients: gram_ij = <G_i, H_j>, and with the bias + <g_i, h_j>.
struct ImageGramArguments {
  LayerPair x, y;  // of one convolution, channels and type; of images of any size
  bool self;       // whether y is x, and not given
  bool bias;
  Matrix gram;  // (N, M)
};

Plan plan_image_gram(const ImageGramArguments& arguments, int threads);
void check_image_gram(const ImageGramArguments& arguments, int threads);
void image_gram(const ImageGramArguments& arguments, const Execution& execution);

// Weighted sums over the rows i of every segment s, t_ij = <x_i, f_j>,
//   cosine_sj = sum_i w_i cos t_ij,   sine_sj = sum_i w_i sin t_ij,
// and the derivatives of two orders of the form Phi = sum_sj (bar_cosine cosine + bar_sine sine)_sj.
enum class CharacteristicOp : int32_t {
  value,  // cosine and sine
  grad,   // out_*: the derivatives of Phi by x, frequencies and weights
  second  // those of the product of these with the tangents, by the bars (cosine, sine) and by the same three
};

struct CharacteristicArguments {
  CharacteristicOp op;
  Matrix x, frequencies;  // (N, D), (F, D) of one floating-point type; all else in the type it is computed in
  Matrix weights;         // (N, 1)
  const int64_t* offsets;  // (segments + 1), host memory
  int64_t segments;
  Matrix bar_cosine, bar_sine;                             // (segments, F); second: data == nullptr: zero
  Matrix tangent_x, tangent_frequencies, tangent_weights;  // data == nullptr: zero
  Matrix cosine, sine;                         // (segments, F); second: data == nullptr: not wanted
  Matrix out_x, out_frequencies, out_weights;  // data == nullptr: not wanted
  // t (N, F) without gaps: kept with a value, known for grad; data == nullptr: neither.
  Matrix products;

  int64_t rows() const { return x.rows; }
  int64_t columns() const { return frequencies.rows; }
  int64_t dim() const { return x.columns; }
  DType type() const { return x.dtype == DType::float64 ? DType::float64 : DType::float32; }
};

// Of the pointers to numbers, only whether they are there is read. The schedule has the offsets.
Plan plan_characteristic(const CharacteristicArguments& arguments, int threads);
std::vector<int32_t> characteristic_schedule(const CharacteristicArguments& arguments, int threads);
void characteristic(const CharacteristicArguments& arguments, const Execution& execution);

// Products with a matrix S (size, dim) of random signs that is nowhere stored: out = factor x S^T or,
// transposed, out = factor x S. Which signs is said in csrc/cpu/random_projection.inl.
struct RandomProjectionArguments {
  Matrix x;    // (N, dim), of any floating-point type; transposed: (N, size)
  Matrix out;  // (N, size), of the type that x is computed in; transposed: (N, dim)
  uint64_t seed, stream;
  double factor;
  bool transposed;

  DType type() const { return x.dtype == DType::float64 ? DType::float64 : DType::float32; }
};

void check_random_projection(const RandomProjectionArguments& arguments, int threads);
Plan plan_random_projection(const RandomProjectionArguments& arguments, int threads);
void random_projection(const RandomProjectionArguments& arguments, const Execution& execution);

void sinkhorn(const SinkhornArguments& arguments, const Execution& execution);
void kernel_sums(const SumsArguments& arguments, const Execution& execution);
void kernel_sums_hvp(const HvpArguments& arguments, const Execution& execution);
void kernel_matvec(const MatvecArguments& arguments, const Execution& execution);
// Of x, weighted by a; y has no rows.
void segment_sums(const Clouds& clouds, const Matrix& out, const Execution& execution);
void mean_bandwidth(const Clouds& clouds, const Execution& execution);
std::string isa_name();

}  // namespace decoct
