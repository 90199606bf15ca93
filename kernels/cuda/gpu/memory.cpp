//go:build gpu

#include "memory.h"

#include <c10/cuda/CUDACachingAllocator.h>

#include <cstring>
#include <exception>

extern "C" char *ssr_cuda_peak(int device, long long *bytes) {
  try {
    namespace allocator = c10::cuda::CUDACachingAllocator;
    const auto index = static_cast<c10::DeviceIndex>(device);
    // The first figure is over all pools; its name differs between versions.
    *bytes = allocator::getDeviceStats(index).allocated_bytes[0].peak;
    allocator::resetPeakStats(index);
    return nullptr;
  } catch (const std::exception &e) {
    return strdup(e.what());
  }
}
