// What the devices are, which one a thread has, and what is wrong with a call.
#include "state.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace pretend {

std::recursive_mutex mutex;
thread_local bool dry = false;
thread_local const char *operation = nullptr;
thread_local int device_now = 0;
thread_local int context = -1;
thread_local int capture_mode = cudaStreamCaptureModeGlobal;
int sticky = 0;

int env(const char *name, int otherwise) {
  const char *v = getenv(name);
  return v && *v ? atoi(v) : otherwise;
}
int device_count() {
  static const int n = env("PRETEND_DEVICES", 2);
  return n;
}
size_t device_bytes() {
  static const size_t n = size_t(env("PRETEND_MIB", 8192)) << 20;
  return n;
}

// properties of a device, as those of an H100 are where something depends on them.
const cudaDeviceProp &properties(int device) {
  static cudaDeviceProp p = [] {
    cudaDeviceProp p;
    memset(&p, 0, sizeof p);
    strcpy(p.name, "pretended GPU");
    p.totalGlobalMem = device_bytes();
    p.sharedMemPerBlock = 48 << 10;
    p.sharedMemPerBlockOptin = 227 << 10;
    p.sharedMemPerMultiprocessor = 228 << 10;
    p.reservedSharedMemPerBlock = 1 << 10;
    p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.warpSize = 32;
    p.memPitch = 0x7fffffff;
    p.maxThreadsPerBlock = 1024;
    p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
    p.maxThreadsDim[2] = 64;
    p.maxGridSize[0] = 0x7fffffff;
    p.maxGridSize[1] = p.maxGridSize[2] = 65535;
    p.totalConstMem = 64 << 10;
    p.major = 9;
    p.minor = 0;
    p.textureAlignment = 512;
    p.multiProcessorCount = 132;
    p.canMapHostMemory = p.unifiedAddressing = p.concurrentKernels = p.managedMemory = 1;
    p.l2CacheSize = 50 << 20;
    p.maxThreadsPerMultiProcessor = 2048;
    p.maxBlocksPerMultiProcessor = 32;
    p.asyncEngineCount = 3;
    p.memoryBusWidth = 5120;
    p.memoryClockRate = 2619000;
    p.clockRate = 1980000;
    p.streamPrioritiesSupported = 1;
    return p;
  }();
  p.pciBusID = device + 1;
  return p;
}

int attribute(int *value, int which, int device) {
  const cudaDeviceProp &p = properties(device);
  switch (which) {
  case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
  case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *value = 1024; break;
  case cudaDevAttrMaxBlockDimZ: *value = 64; break;
  case cudaDevAttrMaxGridDimX: *value = 0x7fffffff; break;
  case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
  case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
  case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
  case cudaDevAttrWarpSize: *value = 32; break;
  case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
  case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
  case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
  case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
  case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
  case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
  case cudaDevAttrClockRate: *value = p.clockRate; break;
  case cudaDevAttrMemoryClockRate: *value = p.memoryClockRate; break;
  case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
  case cudaDevAttrUnifiedAddressing: case cudaDevAttrConcurrentKernels: *value = 1; break;
  default:
    if (verbose()) fprintf(stderr, "pretend: attribute %d is taken for 0\n", which);
    *value = 0;
  }
  return 0;
}

int current_device() { return context >= 0 ? context : device_now; }

// bind is what every call of the runtime does that needs a context: it makes the device's
// primary one current for the thread.
void bind() {
  if (context < 0) context = device_now;
}

int bound(const char *call) {
  return context < 0 ? fail(CUDA_ERROR_INVALID_CONTEXT, call, "no context is current on this thread") : sticky;
}

int check_launch(const char *call, const std::string &name, unsigned x, unsigned y, unsigned z, unsigned threads, size_t shared, size_t most) {
  auto no = [&](int code, const std::string &why) { return fail(code, call, name + ": " + why); };
  if (x == 0 || y == 0 || z == 0 || threads == 0) return no(cudaErrorInvalidConfiguration, "an empty grid or block");
  if (x > 0x7fffffffu || y > 65535 || z > 65535) return no(cudaErrorInvalidConfiguration, "a grid of " + std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z));
  if (threads > 1024) return no(cudaErrorInvalidConfiguration, std::to_string(threads) + " threads a block");
  if (shared > most) return no(cudaErrorInvalidValue, std::to_string(shared) + " bytes of shared memory, of " + std::to_string(most));
  count(launches, 1);
  return sticky;
}

int fail(int code, const char *call, const std::string &why) {
  fprintf(stderr, "pretend: %s: %s (error %d)%s%s\n", call, why.c_str(), code, operation ? " in " : "", operation ? operation : "");
  count(complaints, 1);
  return code;
}

int fault(const char *call, const std::string &why) { return sticky = fail(cudaErrorLaunchFailure, call, why); }

bool verbose() {
  static const bool v = env("PRETEND_LOG", 0);
  return v;
}

void count(Counter which, int by) {
  static const char *path = getenv("PRETEND_COUNTS");
  static const int file = path ? open(path, O_CREAT | O_WRONLY, 0644) : -1;
  static const char *names[] = {"streams", "events", "modules", "graphs", "graph_execs", "launches", "replays", "operations", "complaints"};
  static long totals[counters];
  Lock lock(mutex);
  totals[which] += by;
  if (file < 0) return;
  char line[64];
  const int n = snprintf(line, sizeof line, "%-12s %12ld\n", names[which], totals[which]);
  if (pwrite(file, line, size_t(n), which * 26) < 0) return;
}

} // namespace pretend
