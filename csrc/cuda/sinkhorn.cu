// Transport on CUDA: what its launches are, and how many of them the host knows there to be.
#include "call.cuh"
#include "transport_end.cuh"
#include "transport_kept.cuh"
#include "transport_tile.cuh"

namespace decoct {
namespace cuda {
namespace {

constexpr double kMostRatio = 0x1p20;  // of diameter and blur: annealing from further away ends early

template <class T>
struct TransportKernels {
  const Problem<T>& problem;
  const Transport<T>& transport;
  void* stream;

  void box(int64_t chunks) const {
    launch(box_kernel<T>, {chunks, kThreads, kWarps * 8 + 16, stream}, problem, transport);
  }
  void begin(int64_t chunks) const {
    launch(begin_kernel<T>, {chunks, kThreads, 0, stream}, problem, transport);
  }
  void kept(int64_t terms, int rows, int launches) const {
    launch(kept_kernel<T>, {terms, kThreads, kept_shared<T>(rows), stream}, problem, transport, launches);
  }
  void step(int64_t chunks, int left) const {
    launch(step_kernel<T>, {chunks, kThreads, kWarps * 8 + 2 * kThreads * 8 + 16, stream}, problem, transport,
           0, left);
  }
  void end(int64_t chunks, int64_t segments) const {
    launch(end_kernel<T>, {chunks + segments, kThreads, 0, stream}, problem, transport);
  }
};

// Passes, as many as any term may need: those of annealing follow from the diameter or from kMostRatio, those
// that meet the marginals from max_iterations.
int most_launches(const SinkhornArguments& a) {
  int64_t passes = a.warm ? 0 : 2;
  if (!a.warm) {
    double ratio = a.diameter > 0 ? a.diameter / a.blur : kMostRatio;
    for (; ratio > 1 - 1e-9 && passes + 2 < a.max_iterations; ratio *= a.scaling) ++passes;
  }
  passes += 2;
  if (a.tolerance > 0) passes = std::max<int64_t>(passes, a.max_iterations);
  return (int)std::min<int64_t>(passes, INT32_MAX);
}

template <class T>
class SinkhornCall {
 public:
  SinkhornCall(const SinkhornArguments& a, const Execution& e)
      : a_(a), e_(e), call_(Op::sinkhorn, a.clouds, a.label_cost.data ? a.label_cost.rows : 1, e) {
    set_problem();
    set_transport();
  }

  void run() const {
    const Header& h = *call_.host.header;
    const TransportKernels<T> kernels{call_.problem, transport_, e_.stream};
    prepare();
    kernels.box(h.common.chunks);
    kernels.begin(h.common.chunks);
    const int launches = most_launches(a_);
    if (h.kept_terms > 0) {
      pass({call_.problem, transport_, 0, h.kept_tasks, true, e_.stream});
      kernels.kept(h.kept_terms, h.kept_rows, launches);
    }
    for (int left = launches; left > 0 && h.steps > 0; --left) {
      pass({call_.problem, transport_, h.kept_tasks, h.transport_tasks - h.kept_tasks, false, e_.stream});
      kernels.step(h.steps, left);
    }
    call_.run_rounds();
    kernels.end(h.common.chunks, call_.sizes.segments);
  }

 private:
  double to_power(double length) const { return transport_.squared ? length * length : length; }

  void set_problem() {
    Problem<T>& p = call_.problem;
    p.kernel = Kernel{};
    p.kernel.profile = a_.clouds.kernel.profile;
    p.bandwidth = call_.template at<double>(call_.layout.bandwidth);
    p.coefficients = call_.template at<double>(call_.layout.coefficients);
    p.shifts = call_.template at<double>(call_.layout.shifts);
    p.bias_unit = 1;
    p.plan = true;
    set_side(p.x, a_.x_labels, 0);
    set_side(p.y, a_.y_labels, 1);
  }
  void set_side(Side<T>& side, const Matrix& labels, int index) {
    side.labels = (const int64_t*)labels.data;
    side.bias_pitch = (index ? a_.clouds.y : a_.clouds.x).rows;
    for (int self = 0; self < 2; ++self) {
      side.row_bias[self] = transport_.row_bias[index][self] =
          call_.template at<T>(call_.layout.row_bias[index][self]);
      side.column_bias[self] = transport_.column_bias[index][self] =
          call_.template at<T>(call_.layout.column_bias[index][self]);
      transport_.potentials[index][self] = call_.template at<double>(call_.layout.potentials[index][self]);
    }
  }

  void set_transport() {
    Transport<T>& t = transport_;
    const WorkspaceLayout& w = call_.layout;
    const ScheduleView device = view_schedule(e_.device_schedule, *call_.host.header, call_.sizes.segments);
    t.terms = device.terms;
    t.tasks = device.transport_tasks;
    t.steps = device.steps;
    t.states = call_.template at<TransportState>(w.term_states);
    t.sums = call_.template at<double>(w.term_sums);
    t.step_partials = call_.template at<double>(w.step_partials);
    t.shifts = call_.template at<double>(w.shifts);
    t.coefficients = call_.template at<double>(w.coefficients);
    t.term_tickets = call_.template at<int32_t>(w.term_tickets);
    t.box_tickets = call_.template at<int32_t>(w.box_tickets);
    t.boxes = call_.template at<T>(w.boxes);
    t.kept = call_.template at<T>(w.kept);
    t.rows[0] = a_.clouds.x.rows;
    t.rows[1] = a_.clouds.y.rows;
    t.label_cost = (const double*)a_.label_cost.data;
    t.label_stride = a_.label_cost.stride;
    t.labels = (int32_t)call_.sizes.columns;
    t.chunks = call_.host.header->common.chunks;
    t.squared = a_.clouds.kernel.profile == Profile::gaussian;
    t.warm = a_.warm;
    t.max_iterations = a_.max_iterations;
    t.given_terms =
        (a_.terms & kTermXX ? 1 : 0) | (a_.terms & kTermXY ? 2 : 0) | (a_.terms & kTermYY ? 4 : 0);
    t.need = a_.need;
    t.length = a_.blur;
    t.blur = to_power(a_.blur);
    t.scaling = to_power(a_.scaling);
    t.diameter = to_power(a_.diameter);
    t.reach[0] = to_power(a_.reach_x);
    t.reach[1] = to_power(a_.reach_y);
    t.mass = a_.mass;
    t.tolerance = a_.tolerance;
    t.out[0][0] = (T*)a_.f.data;
    t.out[0][1] = (T*)a_.f_self.data;
    t.out[1][0] = (T*)a_.g.data;
    t.out[1][1] = (T*)a_.g_self.data;
    t.gradient[0] = (T*)a_.grad_x.data;
    t.gradient[1] = (T*)a_.grad_y.data;
    t.gradient_stride[0] = a_.grad_x.stride;
    t.gradient_stride[1] = a_.grad_y.stride;
    t.value = a_.value;
    t.error = a_.error;
    t.iterations = a_.iterations;
  }

  // Rows are packed as for a kernel without a length.
  void prepare() const {
    Call<T> call = call_;
    call.problem.kernel.profile = Profile::energy;
    call.prepare();
  }

  void pass(const TransportLaunch<T>& l) const {
    if constexpr (sizeof(T) == 8) {
      PairKernels<Scalar<double>>::transport(l);
    } else {
      if (call_.sizes.dim < kSmallDim) return launch_transport<Differences>(l);
      switch (e_.precision) {
        case Precision::highest:
          return PairKernels<Tf32x3>::transport(l);
        case Precision::high:
          return PairKernels<Tf32>::transport(l);
        default:
          return PairKernels<Bfloat16>::transport(l);
      }
    }
  }

  const SinkhornArguments& a_;
  const Execution& e_;
  Transport<T> transport_{};
  Call<T> call_;
};

}  // namespace
}  // namespace cuda

void sinkhorn(const SinkhornArguments& a, const Execution& e) {
  a.clouds.x.dtype == DType::float64 ? cuda::SinkhornCall<double>(a, e).run()
                                     : cuda::SinkhornCall<float>(a, e).run();
}

}  // namespace decoct
