//go:build gpu

#include "stream.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <cstring>
#include <exception>

extern "C" void *ssr_cuda_stream(int device, char **why) {
  *why = nullptr;
  try {
    c10::cuda::set_device(static_cast<c10::DeviceIndex>(device));
    return c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).stream();
  } catch (const std::exception &e) {
    *why = strdup(e.what());
    return nullptr;
  }
}
