// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): 128 random bits for
// each counter of 128 bits under a key of 64. The one definition for CUDA, its emulation and vectors of a
// CPU: `Words` is uint32_t or a vector of them, and high_half(m, w) the upper words of the products m w.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace decoct {

template <class Words, class High>
DECOCT_BOTH void philox(Words (&c)[4], uint64_t key, High high_half) {
  constexpr uint32_t first = 0xD2511F53u, second = 0xCD9E8D57u;
  uint32_t low = (uint32_t)key, high = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const Words a = high_half(first, c[0]), b = high_half(second, c[2]);
    const Words second_low = second * c[2], first_low = first * c[0];
    c[0] = b ^ c[1] ^ low;
    c[1] = second_low;
    c[2] = a ^ c[3] ^ high;
    c[3] = first_low;
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
}

}  // namespace decoct
