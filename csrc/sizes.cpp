// The sizes of a call, and what every backend's plan() checks first.
#include <climits>
#include <cstring>
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

namespace {

// Elements of one image are counted in 32 bits.
void check_images(const Images& m, const char* name) {
  const int64_t sizes[] = {m.count, m.channels, m.height, m.width};
  int64_t last = 0;
  for (int k = 0; k < 4; ++k) {
    if (sizes[k] < 0 || m.strides[k] < 0)
      throw std::invalid_argument(std::string(name) + ": sizes and strides must not be negative");
    if (k == 0 || sizes[k] == 0) continue;
    if (sizes[k] > INT32_MAX / 4 || (sizes[k] > 1 && m.strides[k] > INT32_MAX / 4 / (sizes[k] - 1)))
      throw std::invalid_argument(std::string(name) + ": an image must be smaller than 2^29 elements");
    last += (sizes[k] - 1) * m.strides[k];
  }
  if (last > INT32_MAX / 4)
    throw std::invalid_argument(std::string(name) + ": an image must be smaller than 2^29 elements");
}

}  // namespace

void check_barycenter(const BarycenterArguments& a, int threads) {
  if (a.measures < 0 || a.groups < 0 || threads < 1)
    throw std::invalid_argument("barycenter: sizes must not be negative, threads at least 1");
  check_offsets(a.x_offsets, a.measures, "x_offsets");
  check_offsets(a.measure_offsets, a.groups, "measure_offsets");
  check_offsets(a.point_offsets, a.groups, "point_offsets");
  if (a.x_offsets[a.measures] != a.x.rows || a.measure_offsets[a.groups] != a.measures ||
      a.point_offsets[a.groups] != a.points.rows)
    throw std::invalid_argument("barycenter: offsets must end at the rows, the measures and the points");
}

void check_segment_outer(const SegmentOuterArguments& a, int threads) {
  const Images &in = a.activations, &out = a.gradients;
  const Convolution& c = a.convolution;
  if (a.segments < 0 || threads < 1)
    throw std::invalid_argument("plan: sizes must not be negative, threads at least 1");
  check_offsets(a.offsets, a.segments, "offsets");
  check_images(in, "activations");
  check_images(out, "gradients");
  if (in.count != out.count || a.offsets[a.segments] != in.count || in.count > INT32_MAX / 4)
    throw std::invalid_argument("gradients, offsets: expected the images of the activations");
  if (c.groups < 1 || in.channels % c.groups || out.channels % c.groups)
    throw std::invalid_argument("groups: expected a divisor of the channels");
  for (int k = 0; k < 2; ++k) {
    const int64_t most = INT32_MAX / 4, numbers[] = {c.kernel[k], c.stride[k], c.dilation[k]};
    for (int64_t number : numbers)
      if (number < 1 || number > most)
        throw std::invalid_argument("kernel, stride and dilation must be positive");
    if (c.padding[k] < 0 || c.padding[k] > most) throw std::invalid_argument("padding must not be negative");
    const int64_t size = k ? in.width : in.height, made = k ? out.width : out.height;
    const int64_t room = size + 2 * c.padding[k] - c.dilation[k] * (c.kernel[k] - 1) - 1;
    if (room > most || c.dilation[k] * (c.kernel[k] - 1) > most ||
        made != (room < 0 ? 0 : room / c.stride[k] + 1))
      throw std::invalid_argument("gradients: expected the height and width that the convolution makes");
  }
  if (in.channels / c.groups * c.kernel[0] * c.kernel[1] > INT32_MAX / 4)
    throw std::invalid_argument("kernel: too large");
}

std::vector<int32_t> characteristic_schedule(const CharacteristicArguments& a, int threads) {
  if (a.segments < 0 || threads < 1)
    throw std::invalid_argument("plan: sizes must not be negative, threads at least 1");
  check_offsets(a.offsets, a.segments, "offsets");
  if (a.frequencies.columns != a.dim() || a.frequencies.dtype != a.x.dtype)
    throw std::invalid_argument("frequencies: expected the columns and the dtype of x");
  if (a.rows() > INT32_MAX / 4 || a.columns() > INT32_MAX / 4 || a.dim() > INT32_MAX / 4)
    throw std::invalid_argument("x, frequencies: expected fewer than 2^29 rows and columns");
  std::vector<int32_t> words(sizeof(ScheduleHeader) / 4 + 2 * (a.segments + 1));
  auto& header = *(ScheduleHeader*)words.data();
  header.version = 1;
  header.words = (int32_t)words.size();
  std::memcpy(words.data() + sizeof(ScheduleHeader) / 4, a.offsets, (a.segments + 1) * sizeof(int64_t));
  return words;
}

void check_layer_pair(const LayerPair& pair, int threads) {
  const int64_t ends[] = {0, pair.activations.count};
  SegmentOuterArguments a{};
  a.activations = pair.activations;
  a.gradients = pair.gradients;
  a.convolution = pair.convolution;
  a.offsets = ends;
  a.segments = 1;
  check_segment_outer(a, threads);
}

void check_image_gram(const ImageGramArguments& a, int threads) {
  check_layer_pair(a.x, threads);
  if (a.self) return;
  check_layer_pair(a.y, threads);
  if (a.x.activations.channels != a.y.activations.channels ||
      a.x.gradients.channels != a.y.gradients.channels)
    throw std::invalid_argument("y: expected the channels of x");
  if (a.x.type != a.y.type) throw std::invalid_argument("y: expected the type of x");
}

void check_random_projection(const RandomProjectionArguments& a, int threads) {
  if (a.x.rows != a.out.rows || threads < 1)
    throw std::invalid_argument("plan: expected as many rows of out as of x, and at least one thread");
  if (a.x.columns > INT32_MAX / 4 || a.out.columns > INT32_MAX / 4 || a.x.rows > INT32_MAX / 4)
    throw std::invalid_argument("x, out: expected fewer than 2^29 rows and columns");
}

}  // namespace decoct
