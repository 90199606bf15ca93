// The calls of CUDA's runtime that libtorch makes, but for graphs. Its kernels do nothing.
#include "state.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace pretend;

namespace {

std::map<const void *, std::string> kernels; // names of libtorch's
std::map<const void *, int> dynamic_shared;
thread_local cudaError_t last = cudaSuccess;

cudaError_t ret(int code) {
  if (code) last = cudaError_t(code);
  return cudaError_t(code);
}

} // namespace

extern "C" {

// --- libtorch's kernels ---

void **__cudaRegisterFatBinary(void *) {
  static void *handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}
void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
void __cudaRegisterFunction(void **, const char *host, char *, const char *name, int, void *, void *, void *, void *, int *) {
  Lock lock(mutex);
  kernels[host] = name;
}

static thread_local struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} configuration;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<cudaStream_t *>(stream) = configuration.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **, size_t shared, cudaStream_t stream) {
  if (int e = use_stream("cudaLaunchKernel", stream)) return ret(e);
  Lock lock(mutex);
  auto it = kernels.find(f);
  if (it == kernels.end()) return ret(fail(cudaErrorInvalidDeviceFunction, "cudaLaunchKernel", "no such kernel"));
  const auto most = dynamic_shared.find(f);
  if (int e = check_launch("cudaLaunchKernel", it->second, grid.x, grid.y, grid.z, block.x * block.y * block.z, shared,
                           most == dynamic_shared.end() ? 48 << 10 : size_t(most->second)))
    return ret(e);
  if (verbose() || !dry) {
    int status;
    char *name = abi::__cxa_demangle(it->second.c_str(), nullptr, nullptr, &status);
    if (!dry) return ret(fail(cudaErrorInvalidDeviceFunction, "cudaLaunchKernel", std::string(name ? name : it->second.c_str()) + ": a kernel that no operation of libtorch launched"));
    fprintf(stderr, "pretend:   %s launches %.160s\n", operation ? operation : "?", name ? name : it->second.c_str());
    free(name);
  }
  return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args) {
  return cudaLaunchKernel(f, c->gridDim, c->blockDim, args, c->dynamicSmemBytes, c->stream);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *f) {
  bind();
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->ptxVersion = a->binaryVersion = 90;
  a->maxDynamicSharedSizeBytes = 48 << 10;
  return kernels.count(f) ? cudaSuccess : ret(cudaErrorInvalidDeviceFunction);
}
cudaError_t cudaFuncSetAttribute(const void *f, cudaFuncAttribute attribute, int value) {
  bind();
  Lock lock(mutex);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value > 227 << 10) return ret(fail(cudaErrorInvalidValue, "cudaFuncSetAttribute", "more shared memory than there is"));
    dynamic_shared[f] = value;
  }
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *, int threads, size_t, unsigned) {
  bind();
  *n = std::max(1, 2048 / std::max(threads, 1));
  return cudaSuccess;
}

// --- devices ---

cudaError_t cudaGetDeviceCount(int *n) { return *n = device_count(), cudaSuccess; }
cudaError_t cudaGetDevice(int *d) { return *d = current_device(), cudaSuccess; }
cudaError_t cudaSetDevice(int d) {
  if (d < 0 || d >= device_count()) return ret(fail(cudaErrorInvalidDevice, "cudaSetDevice", "no device " + std::to_string(d)));
  device_now = context = d;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp *p, int d) {
  if (d < 0 || d >= device_count()) return ret(fail(cudaErrorInvalidDevice, "cudaGetDeviceProperties", "no such device"));
  return *p = properties(d), cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int d) { return ret(attribute(v, a, d)); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) { return *least = 0, *most = -5, cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) { return snprintf(s, size_t(n), "0000:%02x:00.0", d + 1), cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { return *can = a != b, cudaSuccess; }
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return bind(), cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return ret(synchronize_device("cudaDeviceSynchronize")); }
cudaError_t cudaDriverGetVersion(int *v) { return *v = 12040, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { return *v = 12040, cudaSuccess; }
cudaError_t cudaGetLastError() {
  const cudaError_t e = last;
  last = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError() { return last; }
const char *cudaGetErrorString(cudaError_t e) {
  static thread_local char s[64];
  snprintf(s, sizeof s, "pretended CUDA error %d", int(e));
  return e ? s : "no error";
}
const char *cudaGetErrorName(cudaError_t e) { return cudaGetErrorString(e); }

// --- memory ---

cudaError_t cudaMalloc(void **p, size_t n) { return bind(), ret(allocate("cudaMalloc", p, n, current_device())); }
cudaError_t cudaFree(void *p) { return bind(), ret(release("cudaFree", p, false)); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned) { return bind(), ret(allocate("cudaHostAlloc", p, n, -1)); }
cudaError_t cudaFreeHost(void *p) { return ret(release("cudaFreeHost", p, true)); }
cudaError_t cudaHostGetDevicePointer(void **d, void *h, unsigned) { return *d = h, cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  bind();
  Lock lock(mutex);
  *total = device_bytes();
  *free = *total - taken(current_device());
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
  Lock lock(mutex);
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeUnregistered;
  a->device = -2;
  if (const Memory *m = find(p)) {
    a->type = m->device < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    a->device = m->device;
    a->devicePointer = const_cast<void *>(p);
    if (m->device < 0) a->hostPointer = a->devicePointer;
  }
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind) { return ret(copy("cudaMemcpy", to, from, n, nullptr, true)); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind, cudaStream_t s) { return ret(copy("cudaMemcpyAsync", to, from, n, s, false)); }
cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t n, cudaStream_t s) { return ret(copy("cudaMemcpyPeerAsync", to, from, n, s, false)); }
cudaError_t cudaMemset(void *p, int v, size_t n) { return ret(set("cudaMemset", p, v, n, nullptr)); }
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { return ret(set("cudaMemsetAsync", p, v, n, s)); }

// --- streams and events ---

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int) { return bind(), ret(make_stream(s, !(flags & cudaStreamNonBlocking), false)); }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return ret(end_stream("cudaStreamDestroy", s, false)); }
cudaError_t cudaStreamQuery(cudaStream_t s) { return ret(query_stream("cudaStreamQuery", s, false)); }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return ret(query_stream("cudaStreamSynchronize", s, true)); }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) { return ret(wait_event("cudaStreamWaitEvent", s, e)); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return bind(), ret(make_event(e, false)); }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return bind(), ret(make_event(e, false)); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return ret(end_event("cudaEventDestroy", e)); }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return ret(record("cudaEventRecord", e, s)); }
cudaError_t cudaEventQuery(cudaEvent_t e) { return ret(query_event("cudaEventQuery", e, false)); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return ret(query_event("cudaEventSynchronize", e, true)); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { return *ms = float(b->when - a->when), cudaSuccess; }
}
