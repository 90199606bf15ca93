//go:build gpu

#include "stream.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda.h>

#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

namespace {

// The driver's functions need a context that is current on the thread. CUDA's runtime
// makes a device's own current when it is first called there with need of one; libtorch
// does not call it where the device's number is 0, which every thread begins with.
void make_current(int device) {
  static std::mutex mutex;
  static std::map<int, CUcontext> contexts;
  std::lock_guard<std::mutex> lock(mutex);
  CUcontext &own = contexts[device];
  CUresult status = own ? CUDA_SUCCESS : cuDevicePrimaryCtxRetain(&own, device);
  if (status == CUDA_SUCCESS) status = cuCtxSetCurrent(own);
  if (status != CUDA_SUCCESS) throw std::runtime_error("no context on device " + std::to_string(device) + ": CUresult " + std::to_string(status));
}

} // namespace

extern "C" void *ssr_cuda_stream(int device, char **why) {
  *why = nullptr;
  try {
    const auto index = static_cast<c10::DeviceIndex>(device);
    c10::cuda::set_device(index);
    make_current(device);
    return c10::cuda::getCurrentCUDAStream(index).stream();
  } catch (const c10::Error &e) {
    *why = strdup(e.what_without_backtrace());
    return nullptr;
  } catch (const std::exception &e) {
    *why = strdup(e.what());
    return nullptr;
  }
}
