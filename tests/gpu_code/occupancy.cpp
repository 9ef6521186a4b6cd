// NVIDIA's own formula (cuda_occupancy.h of the toolkit). Reads lines of
//   compute-capability threads registers static-shared dynamic-shared
// and prints the blocks that a multiprocessor holds at a time, and what limits them: w(arps), r(egisters),
// s(hared memory), b(locks).
#include <cstddef>
#include <cstdio>

#include "cuda_occupancy.h"

// What the formula asks of a device (CUDA C++ Programming Guide, "Compute Capabilities").
static cudaOccDeviceProp device_of(int capability) {
  cudaOccDeviceProp device{};
  device.computeMajor = capability / 10;
  device.computeMinor = capability % 10;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = 2048;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = (capability == 80 ? 164 : 228) << 10;
  device.sharedMemPerBlockOptin = device.sharedMemPerMultiprocessor - 1024;
  device.reservedSharedMemPerBlock = 1024;
  device.numSms = capability == 80 ? 108 : 132;
  return device;
}

int main() {
  int capability, threads, registers;
  unsigned long fixed, dynamic;
  while (std::scanf("%d %d %d %lu %lu", &capability, &threads, &registers, &fixed, &dynamic) == 5) {
    if (capability != 80 && capability != 90) {
      std::fprintf(stderr, "occupancy: nothing is known here of compute capability %d\n", capability);
      return 1;
    }
    const cudaOccDeviceProp device = device_of(capability);
    cudaOccFuncAttributes kernel{};
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = fixed;
    kernel.maxDynamicSharedSizeBytes = dynamic;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    const cudaOccDeviceState state{};
    cudaOccResult result{};
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, dynamic))
      return 1;
    const unsigned limits = result.limitingFactors;
    std::printf("%d %s%s%s%s\n", result.activeBlocksPerMultiprocessor, limits & OCC_LIMIT_WARPS ? "w" : "",
                limits & OCC_LIMIT_REGISTERS ? "r" : "", limits & OCC_LIMIT_SHARED_MEMORY ? "s" : "",
                limits & OCC_LIMIT_BLOCKS ? "b" : "");
  }
}
