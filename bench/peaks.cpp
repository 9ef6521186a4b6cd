// Measured ceilings of this machine's cores: float32 FMA rate, float32 exp2 rate, memory read rate.
//
//   peaks THREADS     prints one JSON object: rates a second, over all THREADS together
//
// Each rate is taken over several short windows. The best one is a ceiling; the median says whether the cores
// were free. The exp2 is the cheapest we know within 2 ulp: one rounding, a polynomial of degree 5, one
// scaling.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

// The optimiser must assume that the value is read, and may be changed, here.
template <class T>
inline void touch(T& value) {
  asm volatile("" : "+m"(value) : : "memory");
}

inline Vec splat(float value) {
  return Vec{} + value;
}

// Enough independent chains to hide the latency of two FMA units.
double multiply_add() {
  constexpr int chains = 12, steps = 40000;
  Vec factor = splat(0.999f), term = splat(0.001f), sums[chains];
  touch(factor);
  touch(term);
  for (int c = 0; c < chains; ++c) sums[c] = splat(float(c));
  for (int s = 0; s < steps; ++s) {
#pragma GCC unroll 12
    for (int c = 0; c < chains; ++c) sums[c] = sums[c] * factor + term;
  }
  touch(sums);
  return 2.0 * chains * steps * kLanes;
}

inline Vec polynomial(Vec f) {
  const Vec c1 = splat(0.693146978f), c2 = splat(0.240222421f), c3 = splat(0.0555073374f);
  const Vec c4 = splat(0.00967151266f), c5 = splat(0.00132647269f);
  return ((((c5 * f + c4) * f + c3) * f + c2) * f + c1) * f + splat(1.0f);
}

// Rounding by a magic number, scaling by an integer addition to the exponent: any vector unit.
inline Vec exp2_plain(Vec x) {
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: the low bits of x + magic are the rounded x
  const Vec shifted = x + magic;
  return (Vec)((IntVec)polynomial(x - (shifted - magic)) + ((IntVec)shifted << 23));
}

#if defined(__AVX512F__)
inline Vec exp2_native(Vec x) {
  const Vec whole = (Vec)_mm512_roundscale_ps((__m512)x, 0);
  return (Vec)_mm512_scalef_ps((__m512)polynomial(x - whole), (__m512)whole);
}
#else
inline Vec exp2_native(Vec x) {
  return exp2_plain(x);
}
#endif

// Over a tile that stays in the first-level cache, as an epilogue does.
template <Vec (*exp2_of)(Vec)>
double exponentials() {
  constexpr int vectors = 64, passes = 400;
  alignas(64) Vec tile[vectors];
  for (int v = 0; v < vectors; ++v) tile[v] = splat(-0.37f * float(v));
  Vec sums[4] = {};
  for (int p = 0; p < passes; ++p) {
    touch(tile);
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v += 4) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sums[k] += exp2_of(tile[v + k]);
    }
  }
  touch(sums);
  return double(vectors) * passes * kLanes;
}

template <Vec (*exp2_of)(Vec)>
double exp2_error() {
  double worst = 0;
  for (int i = 0; i < 200000; ++i) {
    Vec x = splat(-float(i) * 5e-4f);
    worst = std::max(worst, std::fabs(exp2_of(x)[0] / std::exp2(double(x[0])) - 1));
  }
  return worst;
}

double read_memory(const std::vector<float>& buffer) {
  const float* data = buffer.data();
  const size_t block = 8 * kLanes;
  Vec sums[8] = {};
  for (size_t i = 0; i + block <= buffer.size(); i += block) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      Vec part;
      std::memcpy(&part, data + i + size_t(k) * kLanes, sizeof part);
      sums[k] += part;
    }
  }
  touch(sums);
  return 4.0 * double(buffer.size());
}

struct Rate {
  double best, median;
};

// `work(thread)` returns the operations that one call does. Threads live through all windows.
Rate measure(int threads, const std::function<double(int)>& work) {
  using Clock = std::chrono::steady_clock;
  constexpr int windows = 9;
  constexpr double seconds = 0.12;
  std::vector<double> rates;
  for (int w = 0; w < windows; ++w) {
    std::atomic<int> ready{0};
    std::vector<double> rate(static_cast<size_t>(threads));
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back([&, t] {
        work(t);
        ready.fetch_add(1);
        while (ready.load() < threads) std::this_thread::yield();
        const auto start = Clock::now();
        double done = 0, elapsed = 0;
        while (elapsed < seconds) {
          done += work(t);
          elapsed = std::chrono::duration<double>(Clock::now() - start).count();
        }
        rate[size_t(t)] = done / elapsed;
      });
    }
    for (auto& thread : pool) thread.join();
    double total = 0;
    for (double r : rate) total += r;
    rates.push_back(total);
  }
  std::sort(rates.begin(), rates.end());
  return {rates.back(), rates[rates.size() / 2]};
}

void print(const char* name, Rate rate) {
  std::printf("\"%s\": %.6g, \"%s_median\": %.6g, ", name, rate.best, name, rate.median);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (threads < 1) return 2;
  const Rate fma = measure(threads, [](int) { return multiply_add(); });
  const Rate plain = measure(threads, [](int) { return exponentials<exp2_plain>(); });
  const Rate native = measure(threads, [](int) { return exponentials<exp2_native>(); });
  const Rate exp = plain.best > native.best ? plain : native;
  // Each thread reads its own part, far larger than its share of the last-level cache.
  std::vector<std::vector<float>> buffers;
  for (int t = 0; t < threads; ++t) buffers.emplace_back(size_t(64) << 20, 1.0f);
  const Rate read = measure(threads, [&](int t) { return read_memory(buffers[size_t(t)]); });
  std::printf("{\"threads\": %d, \"lanes\": %d, ", threads, kLanes);
  print("fma", fma);
  print("exp", exp);
  print("exp_plain", plain);
  print("read", read);
  std::printf("\"exp_error\": %.3g}\n", std::max(exp2_error<exp2_plain>(), exp2_error<exp2_native>()));
  return 0;
}
