// Kernels for emulation_test.cpp: right ones, some of them with a bug on demand, and misuses.
#pragma once

#include <stdexcept>

#include "cuda_on_cpu.h"

using namespace decoct::cuda;

constexpr int kThreads = 128;
constexpr uint16_t kLowNan = 0x7f81;  // stands for a NaN that is told from infinity by a bit that TF32 lacks

// Bugs in sum_tiles: the race checker must report all but the last two, the address sanitizer those.
enum Bug {
  none,
  late_read,
  early_write,
  lost_update,
  warp_exchange,
  early_copy,
  next_output,
  past_shared,
  past_global
};
constexpr struct {
  const char* name;
  Bug bug;
} bugs[] = {{"none", none},
            {"no-barrier-before-read", late_read},
            {"no-barrier-before-overwrite", early_write},
            {"no-atomic", lost_update},
            {"no-sync-warp", warp_exchange},
            {"no-barrier-before-copy", early_copy},
            {"output-of-next-block", next_output},
            {"past-shared", past_shared},
            {"past-global", past_global}};

// sums[block] = sum of the block's tiles of x, of which every thread reads what others have written; counts
// all tiles in *total.
template <Bug kBug>
DECOCT_KERNEL sum_tiles(const float* x, int tiles, float* sums, int* total) {
  Shared shared;
  float* tile = shared.take<float>(kThreads);
  float* copied = shared.take<float>(4 * kThreads);
  float* parts = shared.take<float>(kThreads);
  const int t = thread_index();
  const float* own = x + (int64_t)block_index() * tiles * kThreads;
  float sum = 0;
  if (kBug == next_output && t == 0) sums[block_index() + 1] = 0;
  for (int i = 0; i < tiles; ++i) {
    if (kBug != early_copy) sync_block();
    copy_async(copied + 4 * t, own + i * kThreads + t / 4 * 4, 16);
    commit_copies();
    if (kBug == early_copy) sync_block();
    tile[t] = own[i * kThreads + t + (kBug == past_global)];
    if (kBug != late_read) sync_block();
    const int other = kThreads - 1 - t;
    sum += tile[other + (kBug == past_shared)] / 2;
    if (kBug != early_write) sync_block();
    tile[t] = 0;
    wait_copies<0>();
    sync_block();
    sum += copied[4 * other + other % 4] / 2;
  }
  parts[t] = sum;
  if (kBug == warp_exchange)
    shuffle_xor(t, 1);
  else
    sync_warp();
  sum += parts[t ^ 1];
  for (int mask = 2; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
  sync_block();
  if (lane_index() == 0) parts[warp_index()] = sum;
  sync_block();
  if (t) return;
  float all = 0;
  for (int w = 0; w < kThreads / 32; ++w) all += parts[w];
  sums[block_index()] = all;
  if (kBug == lost_update)
    *total += tiles;
  else
    atomic_add(total, tiles);
}

// Rows and columns of a tile; bytes of its rows, and with a gap.
constexpr int kTile = 64, kChunk = 64, kPitch = kChunk + 16;

// Starts to copy bytes [first, first + kChunk) of 64 rows, zeros for what is beyond.
DECOCT_DEVICE void copy_rows(char* target, const char* rows, int count, int bytes, int pitch, int first) {
  for (int i = thread_index(); i < kTile * kChunk / 16; i += kThreads) {
    const int row = i / (kChunk / 16), column = i % (kChunk / 16) * 16;
    const int left = row < count ? bytes - first - column : 0;
    const int kept = left < 0 ? 0 : left > 16 ? 16 : left;
    copy_async(target + row * kPitch + column, kept ? rows + (int64_t)row * pitch + first + column : rows,
               kept);
  }
}

// c = a b^T for a block's 64 x 64 tile, in two stages of shared memory. A warp has a quarter of it.
template <bool kBfloat16>
DECOCT_KERNEL multiply(const void* a, const void* b, int rows, int columns, int bytes, int pitch, float* c) {
  Shared shared;
  char* tiles = shared.take<char>(4 * kTile * kPitch);
  const auto stage = [&](int chunk, int side) { return tiles + (chunk % 2 * 2 + side) * kTile * kPitch; };
  const int first_row = block_index() * kTile;
  const auto start = [&](int chunk) {
    copy_rows(stage(chunk, 0), (const char*)a + (int64_t)first_row * pitch, rows - first_row, bytes, pitch,
              chunk * kChunk);
    copy_rows(stage(chunk, 1), (const char*)b, columns, bytes, pitch, chunk * kChunk);
    commit_copies();
  };
  const int lane = lane_index(), row = warp_index() / 2 * 32, column = warp_index() % 2 * 32;
  float sums[2][4][4] = {};
  const int chunks = (bytes + kChunk - 1) / kChunk;
  start(0);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (chunk + 1 < chunks) start(chunk + 1);
    if (chunk + 1 < chunks)
      wait_copies<1>();
    else
      wait_copies<0>();
    sync_block();
    for (int k = 0; k < kChunk; k += 32) {
      uint32_t left[2][4], pairs[2][4], right[4][2];
      for (int m = 0; m < 2; ++m)
        load_matrices(left[m], stage(chunk, 0) + (row + 16 * m + lane % 16) * kPitch + k + lane / 16 * 16);
      for (int n = 0; n < 2; ++n)
        load_matrices(pairs[n], stage(chunk, 1) + (column + 16 * n + lane / 16 * 8 + lane % 8) * kPitch + k +
                                    lane / 8 % 2 * 16);
      for (int i = 0; i < 8; ++i) right[i / 2][i % 2] = pairs[i / 4][i % 4];
      if constexpr (kBfloat16) {
        multiply_bfloat16(sums, left, right);
      } else {
        for (int i = 0; i < 8; ++i) left[i / 4][i % 4] = to_tf32(as_float(left[i / 4][i % 4]));
        for (int i = 0; i < 8; ++i) right[i / 2][i % 2] = to_tf32(as_float(right[i / 2][i % 2]));
        multiply_tf32(sums, left, right);
      }
    }
    sync_block();
  }
  for (int i = 0; i < 32; ++i) {
    const int r = first_row + row + i / 16 * 16 + i % 4 / 2 * 8 + lane / 4;
    const int s = column + i / 4 % 4 * 8 + lane % 4 * 2 + i % 2;
    if (r < rows && s < columns) c[r * columns + s] = sums[i / 16][i / 4 % 4][i % 4];
  }
}

// Four 8 x 8 matrices of 16-bit numbers, as the lanes receive their transposes.
DECOCT_KERNEL transpose(const uint16_t* matrices, uint32_t* words) {
  Shared shared;
  uint16_t* tile = shared.take<uint16_t>(4 * 64);
  const int lane = lane_index();
  for (int k = lane; k < 4 * 64; k += 32) tile[k] = matrices[k];
  sync_warp();
  uint32_t own[4];
  load_transposed(own, tile + lane * 8);
  for (int k = 0; k < 4; ++k) words[k * 32 + lane] = own[k];
}

// Partial sums of all blocks, added by the one that draws the last ticket.
DECOCT_KERNEL reduce_in_last(float* partial, int blocks, int* tickets, float* total) {
  Shared shared;
  int* last = shared.take<int>(1);
  const int t = thread_index();
  partial[block_index() * kThreads + t] = (float)(block_index() + t);
  fence();
  sync_block();
  if (t == 0) *last = atomic_add(tickets, 1) == blocks - 1;
  sync_block();
  if (*last == 0) return;
  fence();
  float sum = 0;
  for (int b = 0; b < blocks; ++b) sum += partial[b * kThreads + (t ^ 64)];
  total[t] = sum;
}

// Words of each width through shuffles; an OR over the block, thrice in a row; bits set by all threads.
DECOCT_KERNEL exchange(int* wrong, uint32_t* set) {
  const int t = thread_index();
  double large = t + 0.5;
  uint32_t word = 0x80000000u + t;
  for (const int mask : {1, 7, 31, 0}) {
    large = shuffle_xor(large, mask);
    word = shuffle_xor(word, mask);
  }
  const int from = t ^ 1 ^ 7 ^ 31;
  bool good = large == from + 0.5 && word == 0x80000000u + from;
  good &= !sync_block_any(false);
  good &= sync_block_any(t == 77);
  good &= !sync_block_any(false);
  good &= !sync_block_any(false);
  if (!good) atomic_add(wrong, 1);
  atomic_or(set + t / 32, 1u << t % 32);
  if (lane_index() != t % 32 || warp_index() != t / 32) atomic_add(wrong, 1);
}

DECOCT_KERNEL note_turns(int* turn, int* turns) {
  turns[atomic_add(turn, 1)] = block_index() * kThreads + thread_index();
  sync_block();
  turns[atomic_add(turn, 1)] = block_index() * kThreads + thread_index();
}

DECOCT_KERNEL count_threads(int* count) {
  atomic_add(count, 1);
}

// What is in shared memory where nothing was written, and before and after each of two copies are waited for.
DECOCT_KERNEL watch_copies(const float* global, float* seen) {
  Shared shared;
  const int t = thread_index();
  float* tile = shared.take<float>(8 * kThreads) + 8 * t;
  float* own = seen + (block_index() * kThreads + t) * 20;
  const auto note = [&](int moment) {
    for (int i = 0; i < 5; ++i) own[5 * moment + i] = tile[i < 4 ? i : 7];
  };
  note(0);
  copy_async(tile, global, 12);
  commit_copies();
  copy_async(tile + 4, nullptr, 0);
  commit_copies();
  note(1);
  wait_copies<1>();
  note(2);
  wait_copies<0>();
  note(3);
}

// The data is what it is when the copy is waited for.
DECOCT_KERNEL copy_late(float* values, float* seen) {
  const int own = 4 * thread_index();
  float* tile = Shared().take<float>(4 * kThreads);
  copy_async(tile + own, values + own, 16);
  commit_copies();
  values[own] = 2;
  wait_copies<0>();
  seen[own / 4] = tile[own];
}

// One product with operands from matrices, where compat.cuh says that they are.
template <bool kBfloat16>
DECOCT_KERNEL multiply_once(const uint16_t* a, const uint16_t* b, float* c) {
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  uint32_t left[1][4], right[1][2];
  float sums[1][1][4];
  const auto c_at = [&](int i) -> float& { return c[(i < 2 ? g : g + 8) * 8 + 2 * t + i % 2]; };
  for (int i = 0; i < 4; ++i) sums[0][0][i] = c_at(i);
  if constexpr (kBfloat16) {
    const auto pair = [](const uint16_t* low) { return (uint32_t)low[1] << 16 | low[0]; };
    left[0][0] = pair(a + g * 16 + 2 * t);
    left[0][1] = pair(a + (g + 8) * 16 + 2 * t);
    left[0][2] = pair(a + g * 16 + 2 * t + 8);
    left[0][3] = pair(a + (g + 8) * 16 + 2 * t + 8);
    right[0][0] = (uint32_t)b[(2 * t + 1) * 8 + g] << 16 | b[2 * t * 8 + g];
    right[0][1] = (uint32_t)b[(2 * t + 9) * 8 + g] << 16 | b[(2 * t + 8) * 8 + g];
    multiply_bfloat16(sums, left, right);
  } else {
    // The low bits of finite numbers are what hardware does not read.
    const auto word = [](uint16_t high) {
      return high == kLowNan ? 0x7f800001u : (uint32_t)high << 16 | (~high & 0x7f80u ? 0x1fffu : 0);
    };
    left[0][0] = word(a[g * 8 + t]);
    left[0][1] = word(a[(g + 8) * 8 + t]);
    left[0][2] = word(a[g * 8 + t + 4]);
    left[0][3] = word(a[(g + 8) * 8 + t + 4]);
    right[0][0] = word(b[t * 8 + g]);
    right[0][1] = word(b[(t + 4) * 8 + g]);
    multiply_tf32(sums, left, right);
  }
  for (int i = 0; i < 4; ++i) c_at(i) = sums[0][0][i];
}

enum Misuse {
  two_lines,
  left_before,
  left_while,
  missing_lane,
  missing_warp_lane,
  two_collectives,
  far_mask,
  other_size,
  other_type,
  too_much,
  negative_size,
  odd_source,
  odd_target,
  local_target,
  many_bytes,
  negative_bytes,
  left_pending,
  left_open,
  odd_row,
  outside_row,
  exception
};

int alive = 0;
struct Counted {
  Counted() { atomic_add(&alive, 1); }
  ~Counted() { atomic_add(&alive, -1); }
};

DECOCT_KERNEL misuse(Misuse kind, const float* x) {
  const Counted counted;
  Shared shared;
  const int t = thread_index();
  const bool odd = t == 37;
  float* tile = shared.take<float>(kind == negative_size ? -1 : kind == other_size && odd ? 65 : 64);
  if (kind == other_type) odd ? (void)shared.take<double>(2) : (void)shared.take<float>(4);
  if (kind == too_much) shared.take<float>(12 * 1024 - 60);
  alignas(16) char local[32];
  uint32_t words[4];
  switch (kind) {
    case two_lines:
      if (odd)
        sync_block();
      else
        sync_block();
      break;
    case left_before:
    case left_while:
      if (t == (kind == left_before ? 0 : kThreads - 1)) return;
      sync_block();
      break;
    case missing_lane:
      if (!odd) shuffle_xor(t, 1);
      break;
    case missing_warp_lane:
      if (!odd) sync_warp();
      sync_block();
      break;
    case two_collectives:
      odd ? (void)shuffle_xor(t, 1) : sync_warp();
      break;
    case far_mask:
      shuffle_xor(t, 32);
      break;
    case odd_source:
    case odd_target:
    case local_target:
      copy_async(kind == local_target ? (void*)local : tile + (kind == odd_target), x + (kind == odd_source),
                 16);
      break;
    case many_bytes:
    case negative_bytes:
      copy_async(tile, x, kind == many_bytes ? 17 : -1);
      break;
    case left_pending:
    case left_open:
      copy_async(tile, x, 16);
      if (kind == left_pending) commit_copies();
      wait_copies<1>();
      break;
    case odd_row:
    case outside_row:
      load_matrices(words, tile + (kind == odd_row ? 2 : 64));
      break;
    case exception:
      if (odd) throw std::runtime_error("the kernel's own");
      sync_block();
      break;
    default:
      sync_block();
  }
}
