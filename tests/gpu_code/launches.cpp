// Calls every launcher for each kernel that it has, with a launch() that prints the kernel's mangled name,
// its threads and its dynamic shared memory instead of running it: gates.py learns the launches from the
// code. toolchain.py compiles this for the CPU.
#define launch emulated_launch
#include "cuda_on_cpu.h"
#undef launch
#undef DECOCT_KERNEL
#define DECOCT_KERNEL void  // not static: names of kernels are looked up in the program's symbols
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace decoct::cuda {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& l, const Arguments&...) {
  Dl_info info{};
  if (!dladdr((const void*)kernel, &info) || !info.dli_sname) {
    std::fprintf(stderr, "launches: a kernel without a name; link with -rdynamic\n");
    std::exit(1);
  }
  std::printf("%s %d %d\n", info.dli_sname, l.threads, l.shared_bytes);
}

}  // namespace decoct::cuda

#include "characteristic_mean.cu"
#include "class_gradients.cu"
#include "gradient_distance.cu"
#include "image_gram.cu"
#include "image_squares.cu"
#include "norm.cu"
#include "pairs_bfloat16.cu"
#include "pairs_float64.cu"
#include "pairs_tf32.cu"
#include "pairs_tf32x3.cu"
#include "random_projection.cu"
#include "rows.cu"
#include "sinkhorn.cu"
#include "sizes.cpp"
#include "small.cu"
#include "transport_plan.h"

using namespace decoct;
using namespace decoct::cuda;

template <class A>
void launch_pairs(Profile profile) {
  Problem<typename A::T> problem{};
  problem.kernel.profile = profile;
  Transport<typename A::T> transport{};
  PairKernels<A>::transport({problem, transport, 0, 1, false, nullptr});
  for (const Shape shape : {Shape::square, Shape::narrow, Shape::medium}) {
    Round round{};
    round.shape = shape;
    round.count = 1;
    PairKernels<A>::score({problem, round, nullptr}, false);
    PairKernels<A>::product({problem, round, nullptr}, 0);
    PairKernels<A>::hvp({problem, round, nullptr});
    for (const int dim : {32, 64, 128, kFusedDim}) {
      problem.dim = dim;
      PairKernels<A>::fused({problem, round, nullptr});
    }
  }
}

template <class A>
void launch_layers() {
  OuterProblem<typename A::T> outer{};
  outer.groups = outer.output_tiles = outer.patch_tiles = 1;
  launch_outer<A>(outer, 1, nullptr);
  launch_squares<A>(outer, 1, true, nullptr, nullptr);
  launch_tiles<A>(outer, 1, true, 0, 1, nullptr, nullptr);
  GramProblem<typename A::T> gram{};
  launch_single_gram<A>(gram, 1, nullptr);
  launch_products<A>(gram, {nullptr, nullptr, 1, 1}, 1, false, nullptr, nullptr);
}

template <class T>
void launch_others() {
  Problem<T> problem{};
  Round round{};
  round.count = 1;
  for (const Profile profile : {Profile::gaussian, Profile::linear})
    for (const int dim : {1, sizeof(T) == 8 ? kSmallDoubleDim - 1 : kSmallDim - 1}) {
      problem.kernel.profile = profile;
      problem.dim = dim;
      SmallKernels<T>::launch({problem, round, nullptr});
    }
  RowKernels<T>::anchor(problem, 1, nullptr);
  RowKernels<T>::pack(problem, 1, nullptr);
  RowKernels<T>::pack_tangents(problem, 1, nullptr);
  RowKernels<T>::pack_vectors(problem, {}, 1, 1, nullptr);
  RowKernels<T>::sums(problem, 1, nullptr, 1, nullptr);
  RowKernels<T>::finish(problem, {}, 1, nullptr);
  for (const int side : {32, 200}) {
    NormProblem norm{{1, 1, 1, side, side, 1, 1, true, false, 0}, {}, {}, {}, {}, {}};
    norm.x.dtype = sizeof(T) == 8 ? DType::float64 : DType::float32;
    T number{};
    const Matrix one{&number, 1, 1, 1, norm.x.dtype};
    group_norm({norm, one}, {});
    group_norm_grad({norm, one, one, side == 32 ? one : Matrix{}, {}}, {});
    group_norm_second({norm, one, one, {}, {}, one, one, {}}, {});
  }
  Transport<T> transport{};
  if constexpr (sizeof(T) == 4) launch_transport<Differences>({problem, transport, 0, 1, false, nullptr});
  const TransportKernels<T> kernels{problem, transport, nullptr};
  kernels.box(1);
  kernels.begin(1);
  kernels.kept(1, kMostKeptRows, 1);
  kernels.step(1, 1);
  kernels.end(1, 1);
  OuterProblem<T> outer{};
  outer.groups = outer.output_tiles = outer.patch_tiles = outer.slab_stride = 1;
  launch_combine<T>(outer, 1, nullptr);
  launch_single<T>(outer, 1, {}, {}, nullptr);
  launch_sums<T>(outer, 1, nullptr, {}, {}, nullptr);
  GramProblem<T> gram{};
  gram.n = gram.m = 1;
  launch_slabs<T>(gram, 1, nullptr, nullptr);
  if constexpr (sizeof(T) == 8) {
    launch_layers<Scalar<double>>();
  } else {
    launch_layers<Tf32>();
    launch_layers<Tf32x3>();
    launch_layers<Bfloat16>();
  }
}

void launch_characteristics() {
  int64_t offsets[] = {0, 1};
  std::vector<int32_t> schedule(sizeof(ScheduleHeader) / 4);
  for (const DType dtype : {DType::float64, DType::float32})
    for (const Precision precision : {Precision::highest, Precision::high, Precision::medium})
      for (const CharacteristicOp op :
           {CharacteristicOp::value, CharacteristicOp::grad, CharacteristicOp::second}) {
        CharacteristicArguments a{};
        const Matrix one{offsets, 1, 1, 1, dtype};
        a.op = op;
        a.x = a.frequencies = a.weights = one;
        a.offsets = offsets;
        a.segments = 1;
        if (op == CharacteristicOp::value)
          a.cosine = a.sine = one;
        else
          a.out_x = a.out_frequencies = a.out_weights = one;
        Execution e;
        e.device_schedule = schedule.data();
        e.precision = precision;
        characteristic(a, e);
      }
}

void launch_gradients() {
  for (const DType dtype : {DType::float64, DType::float32, DType::float16, DType::bfloat16}) {
    const GradientLayout layout =
        gradient_layout(GradientMetric::row_cosine, EpsilonForm::product, 1, dtype, 1, {{1, 1, 1}});
    const void* const addresses[] = {nullptr};
    GradientArguments arguments{};
    arguments.layout = &layout;
    arguments.parts = layout.parts.data();
    arguments.part_count = 1;
    arguments.real = arguments.synthetic = addresses;
    gradient_distance(arguments, {});
    arguments.tangent_real = arguments.tangent_synthetic = &layout;
    gradient_distance(arguments, {});
  }
}

void launch_projections() {
  for (const DType dtype : {DType::float64, DType::float32})
    for (const Precision precision : {Precision::highest, Precision::high, Precision::medium}) {
      const Matrix one{nullptr, 1, 1, 1, dtype};
      Execution e;
      e.precision = precision;
      random_projection({one, one, 0, 0, 1.0, false}, e);
    }
}

int main() {
  for (const Profile profile : {Profile::gaussian, Profile::linear}) {
    launch_pairs<Tf32>(profile);
    launch_pairs<Tf32x3>(profile);
    launch_pairs<Bfloat16>(profile);
    launch_pairs<Scalar<double>>(profile);
  }
  launch_others<float>();
  launch_others<double>();
  launch_gradients();
  launch_characteristics();
  launch_projections();
}
