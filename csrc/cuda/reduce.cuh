// Sums over warps, blocks and the blocks of a segment, in an order that never changes.
#pragma once
#include "compat.cuh"
#include "schedule.h"

namespace decoct::cuda {

template <class T>
DECOCT_DEVICE T warp_sum(T value) {
  for (int step = 16; step > 0; step /= 2) value += shuffle_xor(value, step);
  return value;
}

// The sum over a block, to all of its threads. `shared` holds kWarps doubles and may be used again after it.
DECOCT_DEVICE double block_sum(double value, double* shared) {
  value = warp_sum(value);
  if (lane_index() == 0) shared[warp_index()] = value;
  sync_block();
  double total = 0;
  for (int w = 0; w < kWarps; ++w) total += shared[w];
  sync_block();
  return total;
}

// The same for the largest.
DECOCT_DEVICE double block_most(double value, double* shared) {
  for (int step = 16; step > 0; step /= 2) {
    const double other = shuffle_xor(value, step);
    value = other > value ? other : value;
  }
  if (lane_index() == 0) shared[warp_index()] = value;
  sync_block();
  double most = shared[0];
  for (int w = 1; w < kWarps; ++w) most = shared[w] > most ? shared[w] : most;
  sync_block();
  return most;
}

// True in all threads of the block that is the last of `blocks` to come here: it sees what the others wrote
// to global memory before. `shared` holds one int. Blocks never wait for one another.
DECOCT_DEVICE bool last_to_arrive(int* ticket, int blocks, int* shared) {
  fence();
  sync_block();
  if (thread_index() == 0) *shared = atomic_add(ticket, 1);
  sync_block();
  const bool last = *shared == blocks - 1;
  sync_block();
  if (last) fence();
  return last;
}

}  // namespace decoct::cuda
