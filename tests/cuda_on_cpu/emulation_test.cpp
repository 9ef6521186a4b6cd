// What cuda_on_cpu.h promises: right kernels give right results in every order of threads and blocks, each
// misuse is an error with a table of where the lanes are, and numbers are rounded as by the hardware.
//
//   emulation_test             all of it; the sanitizers must have nothing to say
//   emulation_test race NAME   a kernel with one bug that a sanitizer must report; see `bugs`
#include <cstdio>
#include <functional>
#include <random>
#include <thread>

#include "emulation_kernels.h"

namespace {

int passed = 0, failed = 0;

void check(bool good, const std::string& what) {
  ++(good ? passed : failed);
  if (!good) std::printf("FAILED %s\n", what.c_str());
}

void set_order(const char* order) {
  setenv("DECOCT_CUDA_ON_CPU_ORDER", order, 1);
}

Launch shape(int64_t blocks, int threads = kThreads, int shared_bytes = 48 << 10) {
  return {blocks, threads, shared_bytes, nullptr};
}

// ---- Right kernels ----

template <Bug kBug>
bool run_sum_tiles() {
  constexpr int kBlocks = 5, kTiles = 3;
  std::vector<float> x(kBlocks * kTiles * kThreads), sums(kBlocks + 1, NAN);
  for (size_t i = 0; i < x.size(); ++i) x[i] = (float)(i % 7);
  int total = 0;
  launch(sum_tiles<kBug>, shape(kBlocks), x.data(), kTiles, sums.data(), &total);
  bool right = total == kBlocks * kTiles;
  for (int b = 0; b < kBlocks; ++b) {
    double sum = 0;
    for (int i = 0; i < kTiles * kThreads; ++i) sum += x[b * kTiles * kThreads + i];
    right &= sums[b] == sum;
  }
  return right;
}

// The nearest number with `bits` of mantissa beside the leading one, of which floats below 2^-126 have fewer;
// ties go away from zero or to even.
double nearest(double value, int bits, bool ties_to_even) {
  if (value == 0 || !std::isfinite(value)) return value;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(value), -126) - bits),
               scaled = std::fabs(value) / unit;
  double whole = std::floor(scaled);
  const double rest = scaled - whole;
  whole += rest > 0.5 || (rest == 0.5 && (!ties_to_even || std::fmod(whole, 2) == 1));
  return std::copysign(whole * unit, value);
}

template <bool kBfloat16>
void test_multiply(const std::string& order) {
  constexpr int kRows = 100, kColumns = 61, kSize = kBfloat16 ? 2 : 4, kDim = 150 / kSize,
                kStride = 160 / kSize;
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  std::vector<uint32_t> memory[2];  // beyond a row's numbers NaN
  std::vector<double> exact[2];
  for (const int side : {0, 1}) {
    const int rows = side ? kColumns : kRows;
    memory[side].assign(rows * 160 / 4, 0xffffffffu);
    for (int i = 0; i < rows * kDim; ++i) {
      const float drawn = (float)normal(random);
      exact[side].push_back(nearest(drawn, kBfloat16 ? 7 : 10, kBfloat16));
      char* target = (char*)memory[side].data() + (i / kDim * kStride + i % kDim) * kSize;
      const uint32_t bits = kBfloat16 ? as_bits((float)exact[side].back()) >> 16 : as_bits(drawn);
      std::memcpy(target, &bits, kSize);
    }
  }
  std::vector<float> c(kRows * kColumns, NAN);
  launch(multiply<kBfloat16>, shape(2), (const void*)memory[0].data(), (const void*)memory[1].data(), kRows,
         kColumns, kDim * kSize, 160, c.data());
  double worst = 0;
  for (int i = 0; i < kRows * kColumns; ++i) {
    double sum = 0, size = 0;
    for (int k = 0; k < kDim; ++k) {
      const double product = exact[0][i / kColumns * kDim + k] * exact[1][i % kColumns * kDim + k];
      sum += product;
      size += std::fabs(product);
    }
    const double error = std::fabs(c[i] - sum) / (size * 0x1p-23 * 10);
    worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
  }
  check(worst <= 1, (kBfloat16 ? "bfloat16 product " : "TF32 product ") + order);
}

void test_ticket(const std::string& order) {
  constexpr int kBlocks = 9;
  std::vector<float> partial(kBlocks * kThreads, NAN), total(kThreads, NAN);
  int tickets = -1;
  fill_zero(&tickets, sizeof(tickets), nullptr);
  launch(reduce_in_last, shape(kBlocks), partial.data(), kBlocks, &tickets, total.data());
  bool right = true;
  for (int t = 0; t < kThreads; ++t) right &= total[t] == kBlocks * (kBlocks - 1) / 2 + kBlocks * (t ^ 64);
  check(right && tickets == kBlocks, "last block reduces " + order);
}

void test_exchange(const std::string& order) {
  int wrong = 0;
  uint32_t set[4] = {};
  launch(exchange, shape(3), &wrong, (uint32_t*)set);
  check(wrong == 0, "shuffles and sync_block_any " + order);
  for (const uint32_t word : set) check(word == kAllLanes, "atomic_or " + order);
}

std::vector<int> turns_in(const char* order) {
  set_order(order);
  std::vector<int> turns(3 * 2 * kThreads);
  int turn = 0;
  launch(note_turns, shape(3), &turn, turns.data());
  return turns;
}

void test_orders() {
  const std::vector<int> forward = turns_in("forward"), backward = turns_in("reverse"), five = turns_in("5");
  bool right = forward == turns_in("");
  for (int i = 0; i < (int)forward.size(); ++i) {
    const int block = i / (2 * kThreads), t = i % kThreads;
    right &= forward[i] == block * kThreads + t;
    right &= backward[i] == (2 - block) * kThreads + kThreads - 1 - t;
  }
  check(right, "forward and reverse");
  check(five == turns_in("5") && five != turns_in("6") && five != forward, "a seed fixes the order");
  check(!std::equal(five.begin(), five.begin() + kThreads, five.begin() + kThreads),
        "barriers draw new turns");
}

// ---- Errors ----

void expect(const std::string& what, std::vector<std::string> said, const std::function<void()>& call) {
  std::string message;
  try {
    call();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  bool good = !message.empty();
  for (const std::string& part : said) good &= message.find(part) != std::string::npos;
  check(good, what + " is an error, came: " + message);
  check(run_sum_tiles<none>(), "launch after: " + what);
}

void test_errors(const std::string& order) {
  alignas(16) static const float x[8] = {};
  const auto expect_misuse = [&](Misuse kind, const std::string& name, std::vector<std::string> said) {
    expect(name + " " + order, said, [&] { launch(misuse, shape(2), kind, (const float*)x); });
    check(alive == 0, "destructors after " + name + " " + order);
  };
  const std::string file = "emulation_kernels.h:", table = "\n  warp";
  expect_misuse(two_lines, "a barrier at two lines", {"sync_block at " + file, table, "in sync_block"});
  expect_misuse(left_before, "a thread that left before a barrier", {"left the kernel", "exited", table});
  expect_misuse(left_while, "a thread that leaves at a barrier", {"left the kernel", table});
  expect_misuse(missing_lane, "a lane missing in a shuffle",
                {"no thread can go on", "warp 1: lanes 0-4,6-31 in shuffle_xor at", "lanes 5 exited"});
  expect_misuse(missing_warp_lane, "a lane missing in sync_warp",
                {"no thread can go on", "lanes 5 in sync_block", "in sync_warp"});
  expect_misuse(two_collectives, "two collectives in a warp", {"others wait in", "shuffle_xor", "sync_warp"});
  expect_misuse(far_mask, "a mask beyond the warp", {"mask 32", file});
  expect_misuse(other_size, "an array of two sizes", {"shared array 0 has 2"});
  expect_misuse(other_type, "an array of two types", {"shared array 1 has 16 bytes of"});
  expect_misuse(too_much, "too much shared memory",
                {"takes 49168 bytes of shared memory, launched with 49152"});
  expect_misuse(negative_size, "a negative size", {"negative size"});
  expect_misuse(odd_source, "a misaligned source", {"misaligned address in global", "copy_async at " + file});
  expect_misuse(odd_target, "a misaligned target", {"misaligned address in shared", "copy_async at " + file});
  expect_misuse(local_target, "a target in local memory", {"outside shared memory", "copy_async at " + file});
  expect_misuse(many_bytes, "17 bytes", {"copies 17 bytes"});
  expect_misuse(negative_bytes, "-1 bytes", {"copies -1 bytes"});
  expect_misuse(left_pending, "a copy not waited for", {"before it waited for copy_async at " + file});
  expect_misuse(left_open, "a copy not committed", {"before it waited for copy_async at " + file});
  expect_misuse(odd_row, "a misaligned row", {"misaligned", "load_matrices at " + file});
  expect_misuse(outside_row, "a row beyond the array", {"outside shared memory"});
  expect_misuse(exception, "an exception", {"the kernel's own"});
}

void test_launches() {
  int count = 0;
  launch(count_threads, shape(0), &count);
  check(count == 0, "no blocks");
  for (const int threads : {32, 224, 1024}) {
    if (emulation::kRaces && threads > 224) continue;  // what the race checker does not see
    count = 0;
    launch(count_threads, shape(3, threads), &count);
    check(count == 3 * threads, "all threads run");
  }
  for (const int threads : {0, -32, 33, 1056})
    expect("threads a block", {"multiple of 32"}, [&] { launch(count_threads, shape(1, threads), &count); });
  expect("negative blocks", {"-1 blocks"}, [&] { launch(count_threads, shape(-1), &count); });
  expect("too much shared memory", {"no device"},
         [&] { launch(count_threads, shape(1, 32, 228 << 10), &count); });
  set_order("sideways");
  expect("an unknown order", {"sideways"}, [&] {
    try {
      launch(count_threads, shape(1), &count);
    } catch (...) {
      set_order("forward");
      throw;
    }
  });
  std::vector<std::thread> callers;
  int right[3] = {};
  for (int& r : right)
    callers.emplace_back([&r] {
      for (int i = 0; i < 20; ++i) r += run_sum_tiles<none>();
    });
  for (std::thread& caller : callers) caller.join();
  check(right[0] == 20 && right[1] == 20 && right[2] == 20, "launches from several threads");
}

// ---- Memory ----

void test_memory(const std::string& order) {
  std::vector<float> global(4), seen(2 * kThreads * 20);
  for (int i = 0; i < 4; ++i) global[i] = (float)(i + 1);
  launch(watch_copies, shape(2), (const float*)global.data(), seen.data());
  // The moments' first three numbers, fourth and last: NaN is 9 here.
  const int expected[4][3] = {{9, 9, 9}, {9, 9, 9}, {1, 0, 9}, {1, 0, 0}};
  bool right = true;
  for (size_t i = 0; i < seen.size(); ++i) {
    const int number = i % 5, *at = expected[i / 5 % 4];
    const int value = number < 3 ? (at[0] == 9 ? 9 : number + 1) : at[number - 2];
    right &= value == 9 ? std::isnan(seen[i]) : seen[i] == value;
  }
  check(right, "shared memory is NaN and copies arrive when waited for " + order);
  std::vector<float> values(4 * kThreads, 1), late(kThreads);
  launch(copy_late, shape(1), values.data(), late.data());
  check(late == std::vector<float>(kThreads, 2), "copies read when waited for " + order);
}

// ---- Numbers ----

void test_transposes() {
  std::vector<uint16_t> matrices(4 * 64);
  std::vector<uint32_t> words(4 * 32);
  for (size_t k = 0; k < matrices.size(); ++k) matrices[k] = (uint16_t)(k * 257);
  launch(transpose, shape(1, 32), (const uint16_t*)matrices.data(), words.data());
  bool right = true;
  for (int k = 0; k < 4 * 32; ++k)
    for (int part = 0; part < 2; ++part) {
      const int matrix = k / 32, column = k % 32 / 4, row = k % 4 * 2 + part;
      right &= (uint16_t)(words[k] >> 16 * part) == matrices[matrix * 64 + row * 8 + column];
    }
  check(right, "transposed matrices");
}

template <bool kBfloat16>
void test_fragments() {
  constexpr int kDim = kBfloat16 ? 16 : 8;
  const std::string name = kBfloat16 ? "bfloat16" : "TF32";
  const auto half = [](float value) { return (uint16_t)(as_bits(value) >> 16); };
  std::vector<uint16_t> a(16 * kDim), b(kDim * 8);
  std::vector<float> c(16 * 8);
  const auto run = [&] {
    launch(multiply_once<kBfloat16>, shape(1, 32), (const uint16_t*)a.data(), (const uint16_t*)b.data(),
           c.data());
  };
  for (size_t i = 0; i < a.size(); ++i) a[i] = half((float)(i % 61) - 30);
  for (size_t i = 0; i < b.size(); ++i) b[i] = half((float)(i % 53) - 26);
  for (size_t i = 0; i < c.size(); ++i) c[i] = (float)i;
  run();
  bool right = true;
  for (int i = 0; i < 16 * 8; ++i) {
    int sum = i;
    for (int k = 0; k < kDim; ++k) sum += ((i / 8 * kDim + k) % 61 - 30) * ((k * 8 + i % 8) % 53 - 26);
    right &= c[i] == (float)sum;
  }
  check(right, name + " fragments");
  // 1 + 2^-24 * 1.75 stays 1, and so with the other sign; what is not finite goes through.
  const float cases[][4] = {{1, 1.75f, 0x1p-24f, 1},
                            {-1, -1.75f, 0x1p-24f, -1},
                            {1, -1, 0x1p-25f, 0x1.fffffep-1f},
                            {-1, 1, 0x1p-25f, -0x1.fffffep-1f},
                            {0, INFINITY, 2, INFINITY},
                            {-INFINITY, 1, 1, -INFINITY},
                            {0, INFINITY, 0, NAN},
                            {NAN, 1, 1, NAN},
                            {0, NAN, 1, NAN},
                            {0, as_float(kLowNan << 16), 1, NAN}};
  for (const auto& [start, left, right_side, expected] : cases) {
    std::fill(a.begin(), a.end(), 0);
    std::fill(b.begin(), b.end(), 0);
    std::fill(c.begin(), c.end(), start);
    for (int m = 0; m < 16; ++m) a[m * kDim + 3] = half(left);
    for (int n = 0; n < 8; ++n) b[3 * 8 + n] = half(right_side);
    run();
    bool good = true;
    for (const float value : c) good &= std::isnan(expected) ? std::isnan(value) : value == expected;
    check(good, name + " sum of " + std::to_string(start) + " and " + std::to_string(left) + " times " +
                    std::to_string(right_side));
  }
}

bool same_number(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

// All kinds of floats: any bits, near halves of the last kept bit, zeros, subnormal, not finite.
std::vector<float> floats() {
  std::vector<float> all = {0.0f, -0.0f,     INFINITY,  -INFINITY, NAN,      1,
                            -1,   0x1p-126f, 0x1p-149f, 127.5f,    -125.99f, 128};
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const uint32_t bits = (uint32_t)random();
    all.push_back(as_float(bits));
    for (const uint32_t low : {0xfffu, 0x1000u, 0x1001u}) all.push_back(as_float((bits & ~0x1fffu) | low));
    for (const uint32_t low : {0x7fffu, 0x8000u, 0x8001u}) all.push_back(as_float((bits & ~0xffffu) | low));
    all.push_back((float)((int)bits * 0x1p-24));
  }
  return all;
}

void test_rounding() {
  bool tf32 = true, low = true, high = true, copies = true;
  for (const float value : floats()) {
    tf32 &= same_number(as_float(to_tf32(value)), (float)nearest(value, 10, false));
    const float expected = (float)nearest(value, 7, true);
    low &= same_number(as_float(pack_bfloat16(value, 1) << 16), expected);
    high &= same_number(as_float(pack_bfloat16(1, value) & 0xffff0000u), expected);
    copies &= same_number(as_float(as_bits(value)), value);
  }
  check(tf32, "to_tf32");
  check(low && high, "pack_bfloat16");
  check(copies, "as_float, as_bits");
  check(lowest_bit(0) == -1 && lowest_bit(12) == 2 && lowest_bit(1u << 31) == 31, "lowest_bit");
  check(pack_bfloat16(1, -2) == 0xc0003f80u, "pack_bfloat16 has the first in the low half");
  bool half =
      half_to_float(0x3c00) == 1 && half_to_float(0x7bff) == 65504 && std::isnan(half_to_float(0xfe00));
  half &= half_to_float(0x7c00) == INFINITY && half_to_float(0xfc00) == -INFINITY;
  double value = 0, unit = 0x1p-24;
  for (int bits = 0; bits < 0x7c00; ++bits, value += unit) {
    half &= same_number(half_to_float((uint16_t)bits), value);
    half &= same_number(half_to_float((uint16_t)(bits | 0x8000)), -value);
    if (bits >= 2048 && bits % 1024 == 0) unit *= 2, half &= value == std::ldexp(1.0, bits / 1024 - 15);
  }
  check(half, "half_to_float");
}

void test_exp2() {
  double worst = 0;
  bool good = true;
  for (const float value : floats()) {
    const float got = exp2_approximate(value);
    const long double exact = exp2l(value);
    good &= same_number(got, exp2_approximate(value));
    if (std::isnan(value)) {
      good &= std::isnan(got);
    } else if (value >= 128 || exact < 0x1p-126L) {
      good &= got == (value > 0 ? INFINITY : 0);
    } else {
      good &= std::fabs(value) >= 0x1p-126f || got == 1;
      worst = std::fmax(worst, (double)(fabsl(got - exact) / exact * 0x1p22L));
    }
  }
  check(good, "exp2_approximate");
  check(worst > 0.7 && worst <= 1, "exp2_approximate is off by " + std::to_string(worst) + " of 2^-22");
}

void test_all() {
  for (const std::string order : {"forward", "reverse", "1", "2", "3"}) {
    set_order(order.c_str());
    check(run_sum_tiles<none>(), "sums of tiles " + order);
    test_multiply<false>(order);
    test_multiply<true>(order);
    test_ticket(order);
    test_exchange(order);
    test_memory(order);
    test_errors(order);
  }
  test_orders();
  set_order("forward");
  test_launches();
  test_fragments<false>();
  test_fragments<true>();
  test_transposes();
  test_rounding();
  test_exp2();
}

// Runs the kernel with one bug; what comes of it is for the sanitizer to say.
template <int kBug>
bool run_bug(const std::string& name) {
  if (name == bugs[kBug].name) run_sum_tiles<bugs[kBug].bug>();
  if constexpr (kBug + 1 < (int)std::size(bugs))
    return name == bugs[kBug].name || run_bug<kBug + 1>(name);
  else
    return name == bugs[kBug].name;
}

}  // namespace

int main(int count, char** words) {
  if (count == 3 && std::string(words[1]) == "race") return run_bug<0>(words[2]) ? 0 : 2;
  test_all();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
