// The names of csrc/cuda/compat.cuh for kernels that are compiled as C++ for the CPU: see launch.h for how
// they run. What is checked beyond bounds and races:
//   - sync_block and warp collectives by all threads, from one line of the source, with one order of arrival;
//   - shared memory starts as NaN and is not more than launched with;
//   - asynchronous copies arrive only when waited for, are aligned, and none is left when a thread returns.
// g++ needs -Wno-unknown-pragmas for the kernels' "#pragma unroll".
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "launch.h"

#define DECOCT_KERNEL [[maybe_unused]] static void
#define DECOCT_DEVICE inline

// Where the kernel calls.
#define DECOCT_PLACE(action) {action, __builtin_FILE(), __builtin_LINE()}

namespace decoct::cuda {

using emulation::Place;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kSharedWithoutAsking = 48 << 10;

DECOCT_ENGINE int thread_index() {
  return emulation::index_of(*emulation::engine.current);
}
DECOCT_ENGINE int block_index() {
  return emulation::engine.block_index;
}
DECOCT_ENGINE int lane_index() {
  return thread_index() % 32;
}
DECOCT_ENGINE int warp_index() {
  return thread_index() / 32;
}

class Shared {
 public:
  template <class T>
  T* take(int count, Place place = DECOCT_PLACE("Shared::take")) {
    static_assert(alignof(T) <= 16 && std::is_trivially_copyable_v<T>,
                  "shared memory is plain and 16-byte aligned");
    return (T*)emulation::take(calls_++, count * (int64_t)sizeof(T), sizeof(T), place);
  }

 private:
  int calls_ = 0;
};

inline void sync_block(Place place = DECOCT_PLACE("sync_block")) {
  emulation::meet_block(false, place);
}
inline bool sync_block_any(bool mine, Place place = DECOCT_PLACE("sync_block_any")) {
  return emulation::meet_block(mine, place);
}
inline void sync_warp(Place place = DECOCT_PLACE("sync_warp")) {
  emulation::meet_warp(0, true, place);
}

// Orders no memory, as on the GPU.
template <class T>
DECOCT_ENGINE T shuffle_xor(T value, int mask, Place place = DECOCT_PLACE("shuffle_xor")) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "what CUDA's shuffles take");
  if (mask < 0 || mask > 31) emulation::fail("mask " + std::to_string(mask), place);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* lanes = emulation::meet_warp(bits, false, place);
  std::memcpy(&value, &lanes[lane_index() ^ mask], sizeof(T));
  return value;
}

inline int lowest_bit(uint32_t bits) {
  return __builtin_ffs((int)bits) - 1;
}

// The race checker sees every fence ordered after those that ran before it.
inline void fence() {
  emulation::acquire(&emulation::engine.fences);
  emulation::release(&emulation::engine.fences);
}
inline int atomic_add(int* counter, int value) {
  return __atomic_fetch_add(counter, value, __ATOMIC_RELAXED);
}
inline void atomic_or(uint32_t* word, uint32_t bits) {
  __atomic_fetch_or(word, bits, __ATOMIC_RELAXED);
}

inline void copy_async(void* shared, const void* global, int bytes,
                       Place place = DECOCT_PLACE("copy_async")) {
  emulation::start_copy(shared, global, bytes, place);
}
DECOCT_ENGINE void commit_copies() {
  ++emulation::engine.current->groups;
}
template <int Pending>
void wait_copies() {
  static_assert(Pending >= 0);
  emulation::finish_copies(Pending);
}

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float multiply_add(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline double multiply_add(double a, double b, double c) {
  return std::fma(a, b, c);
}
// Ties go away from zero.
inline uint32_t to_tf32(float value) {
  if (std::isnan(value)) return 0x7fffffffu;
  return (as_bits(value) + (std::isinf(value) ? 0 : 0x1000u)) & ~0x1fffu;
}

namespace emulation {

// Ties go to even.
inline uint32_t to_bfloat16(float value) {
  if (std::isnan(value)) return 0x7fffu;
  const uint32_t bits = as_bits(value);
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

// Lanes hold their parts of the operands of all M x N products.
struct Fragments {
  float* sums;
  const uint32_t *a, *b;
};

// Number `part` of `Parts` in a register: one TF32 number, of whose mantissa hardware reads 10 bits, or two
// bfloat16.
template <int Parts>
DECOCT_ENGINE double operand(uint32_t bits, int part) {
  if (Parts == 2) return as_float(bits >> 16 * part << 16);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return as_float(nan ? bits : bits & ~0x1fffu);
}

// Tensor cores cut sums off rather than round them. A finite sum out of range becomes infinite.
DECOCT_ENGINE float cut_off(double sum) {
  const float near = (float)sum;
  const bool beyond = std::fabs((double)near) > std::fabs(sum) && !std::isinf(near);
  return beyond ? as_float(as_bits(near) - 1) : near;
}

// Where a lane has the sum of a row and column of M x N products.
template <int N>
DECOCT_ENGINE float& sum_at(const uint64_t* lanes, int row, int column) {
  const Fragments& owner = *(const Fragments*)lanes[row % 8 * 4 + column % 8 / 2];
  return owner.sums[(row / 16 * N + column / 8) * 4 + row % 16 / 8 * 2 + column % 2];
}

// Most of the time of a product goes here, with no address that depends on data.
template <int Count, int Columns>
__attribute__((no_sanitize("address", "undefined", "thread"))) void add_products(
    double (&sums)[Count], const double (&a)[Columns], const double (&b)[Columns][Count]) {
  for (int k = 0; k < Columns; ++k)
    for (int n = 0; n < Count; ++n) sums[n] += a[k] * b[k][n];
}

// All lanes' products at once. Products are exact and a sum over 8 * Parts columns is cut off once.
template <int M, int N, int Parts>
DECOCT_ENGINE void multiply_warp(const uint64_t* lanes) {
  constexpr int kColumns = 8 * Parts;
  double a[16 * M][kColumns], b[kColumns][8 * N], sums[8 * N];
  for (int lane = 0; lane < 32; ++lane) {
    const Fragments& own = *(const Fragments*)lanes[lane];
    const int g = lane / 4, t = lane % 4;
    for (int part = 0; part < Parts; ++part) {
      const int column = Parts * t + part;
      for (int i = 0; i < 4 * M; ++i)
        a[i / 4 * 16 + i % 2 * 8 + g][column + i % 4 / 2 * 4 * Parts] = operand<Parts>(own.a[i], part);
      for (int i = 0; i < 2 * N; ++i)
        b[column + i % 2 * 4 * Parts][i / 2 * 8 + g] = operand<Parts>(own.b[i], part);
    }
  }
  for (int row = 0; row < 16 * M; ++row) {
    for (int n = 0; n < 8 * N; ++n) sums[n] = sum_at<N>(lanes, row, n);
    add_products(sums, a[row], b);
    for (int n = 0; n < 8 * N; ++n) sum_at<N>(lanes, row, n) = cut_off(sums[n]);
  }
}

}  // namespace emulation

inline uint32_t pack_bfloat16(float low, float high) {
  return emulation::to_bfloat16(high) << 16 | emulation::to_bfloat16(low);
}
inline float half_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value = std::ldexp((float)(exponent ? mantissa + 1024 : mantissa), (exponent ? exponent : 1) - 25);
  if (exponent == 31) value = mantissa ? NAN : INFINITY;
  return std::copysign(value, bits >> 15 ? -1.0f : 1.0f);
}
// Ties go to even, as std::nearbyint's do. A half has 10 bits behind its first one, or multiples of 2^-24.
inline uint16_t float_to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7fff;
  const float size = std::fabs(value);
  if (size >= 65520.0f) return sign | 0x7c00;
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  const int units = (int)std::nearbyint(std::ldexp(size, 10 - exponent));
  // A carry out of the mantissa goes on into the exponent.
  return (uint16_t)(sign | ((exponent + 14) * 1024 + units));
}

inline void load_matrices(uint32_t (&words)[4], const void* row,
                          Place place = DECOCT_PLACE("load_matrices")) {
  emulation::check_shared_row(row, place);
  const uint64_t* rows = emulation::meet_warp((uint64_t)row, false, place);
  const int lane = lane_index();
  for (int matrix = 0; matrix < 4; ++matrix)
    std::memcpy(&words[matrix], (const char*)rows[8 * matrix + lane / 4] + lane % 4 * 4, 4);
}

inline void load_transposed(uint32_t (&words)[4], const void* row,
                            Place place = DECOCT_PLACE("load_transposed")) {
  emulation::check_shared_row(row, place);
  const uint64_t* rows = emulation::meet_warp((uint64_t)row, false, place);
  const int lane = lane_index();
  for (int matrix = 0; matrix < 4; ++matrix)
    for (int part = 0; part < 2; ++part)
      std::memcpy((char*)&words[matrix] + 2 * part,
                  (const char*)rows[8 * matrix + lane % 4 * 2 + part] + lane / 4 * 2, 2);
}

template <int M, int N>
void multiply_tf32(float (&sums)[M][N][4], const uint32_t (&a)[M][4], const uint32_t (&b)[N][2],
                   Place place = DECOCT_PLACE("multiply_tf32")) {
  const emulation::Fragments own{sums[0][0], a[0], b[0]};
  emulation::meet_warp((uint64_t)&own, false, place, emulation::multiply_warp<M, N, 1>);
}
template <int M, int N>
void multiply_bfloat16(float (&sums)[M][N][4], const uint32_t (&a)[M][4], const uint32_t (&b)[N][2],
                       Place place = DECOCT_PLACE("multiply_bfloat16")) {
  const emulation::Fragments own{sums[0][0], a[0], b[0]};
  emulation::meet_warp((uint64_t)&own, false, place, emulation::multiply_warp<M, N, 2>);
}

// Off by a hash of the input, up to the 2^-22 of the result that hardware may be off.
inline float exp2_approximate(float value) {
  if (!(std::fabs(value) >= 0x1p-126f)) return std::isnan(value) ? value : 1;
  const double exact = std::exp2((double)value);
  if (exact < 0x1p-126 || exact >= 0x1p128) return exact < 1 ? 0 : INFINITY;
  const double error = 0x1.8p-23 * ((as_bits(value) * 2654435761u >> 8) * 0x1p-23 - 1);
  return (float)std::fmin(std::fmax(exact + exact * error, 0x1p-126), 0x1.fffffep127);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& l, const Arguments&... arguments) {
  if (l.blocks == 0) return;
  const auto call = [&] { kernel(arguments...); };
  emulation::run(l, [](void* data) { (*(decltype(call)*)data)(); }, (void*)&call);
}

inline void fill_zero(void* memory, int64_t bytes, void*) {
  if (bytes > 0) std::memset(memory, 0, (size_t)bytes);
}

}  // namespace decoct::cuda

#undef DECOCT_PLACE
