// The calls of CUDA's driver that gorgonia.org/cu and libtorch make. A module's kernels are
// those that its PTX names, and run in the emulator.
#include "state.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <regex>

#include "emulate.h"

using namespace pretend;

struct CUctx_st {
  int device;
};
struct CUfunc_st {
  std::string name;
  std::vector<size_t> sizes;
  std::vector<bool> wide; // may be an address
  size_t shared, dynamic = 48 << 10;
  int device;
};
struct CUmod_st {
  int device;
  std::map<std::string, std::unique_ptr<CUfunc_st>> functions;
};

namespace {
CUctx_st contexts[64];
std::set<CUmod_st *> all_modules;
} // namespace

extern "C" {

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *v) { return *v = 12040, CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult e, const char **s) { return *s = cudaGetErrorString(cudaError_t(e)), CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *n) { return *n = device_count(), CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *d, int i) {
  *d = i;
  return i >= 0 && i < device_count() ? CUDA_SUCCESS : CUresult(fail(CUDA_ERROR_INVALID_DEVICE, "cuDeviceGet", "no such device"));
}
CUresult cuDeviceGetName(char *s, int n, CUdevice d) { return snprintf(s, size_t(n), "%s", properties(d).name), CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) { return CUresult(attribute(v, a, d)); }
CUresult cuDeviceTotalMem_v2(size_t *n, CUdevice) { return *n = device_bytes(), CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) { return *flags = 0, *active = 1, CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) {
  contexts[d].device = d;
  return *c = &contexts[d], CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext *c) {
  if (context < 0) return *c = nullptr, CUDA_SUCCESS;
  return cuDevicePrimaryCtxRetain(c, context);
}
CUresult cuCtxSetCurrent(CUcontext c) {
  context = c ? c->device : -1;
  if (c) device_now = context;
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice *d) {
  if (int e = bound("cuCtxGetDevice")) return CUresult(e);
  return *d = context, CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() {
  if (int e = bound("cuCtxSynchronize")) return CUresult(e);
  return CUresult(synchronize_device("cuCtxSynchronize"));
}
CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
  if (int e = bound("cuMemGetInfo")) return CUresult(e);
  return CUresult(cudaMemGetInfo(free, total));
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, CUstream s) {
  if (int e = bound("cuMemcpyHtoDAsync")) return CUresult(e);
  if (int e = check_memory("cuMemcpyHtoDAsync", reinterpret_cast<void *>(to), n, current_device())) return CUresult(e);
  return CUresult(copy("cuMemcpyHtoDAsync", reinterpret_cast<void *>(to), from, n, s, false));
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream s) {
  if (int e = bound("cuMemcpyDtoHAsync")) return CUresult(e);
  if (int e = check_memory("cuMemcpyDtoHAsync", reinterpret_cast<void *>(from), n, current_device())) return CUresult(e);
  return CUresult(copy("cuMemcpyDtoHAsync", to, reinterpret_cast<void *>(from), n, s, false));
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) {
  if (int e = bound("cuMemcpyDtoDAsync")) return CUresult(e);
  return CUresult(copy("cuMemcpyDtoDAsync", reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), n, s, false));
}
CUresult cuStreamCreate(CUstream *s, unsigned flags) {
  if (int e = bound("cuStreamCreate")) return CUresult(e);
  return CUresult(make_stream(s, !(flags & CU_STREAM_NON_BLOCKING), true));
}
CUresult cuStreamDestroy_v2(CUstream s) { return CUresult(end_stream("cuStreamDestroy", s, true)); }
CUresult cuStreamQuery(CUstream s) {
  if (int e = bound("cuStreamQuery")) return CUresult(e);
  return CUresult(query_stream("cuStreamQuery", s, false));
}
CUresult cuStreamSynchronize(CUstream s) {
  if (int e = bound("cuStreamSynchronize")) return CUresult(e);
  return CUresult(query_stream("cuStreamSynchronize", s, true));
}
CUresult cuStreamWaitEvent(CUstream s, CUevent e, unsigned) { return CUresult(wait_event("cuStreamWaitEvent", s, e)); }
CUresult cuEventCreate(CUevent *e, unsigned) {
  if (int code = bound("cuEventCreate")) return CUresult(code);
  return CUresult(make_event(e, true));
}
CUresult cuEventDestroy_v2(CUevent e) { return CUresult(end_event("cuEventDestroy", e)); }
CUresult cuEventRecord(CUevent e, CUstream s) {
  if (int code = bound("cuEventRecord")) return CUresult(code);
  return CUresult(record("cuEventRecord", e, s));
}
CUresult cuEventQuery(CUevent e) { return CUresult(query_event("cuEventQuery", e, false)); }
CUresult cuEventSynchronize(CUevent e) { return CUresult(query_event("cuEventSynchronize", e, true)); }
CUresult cuEventElapsedTime(float *ms, CUevent a, CUevent b) { return *ms = float(b->when - a->when), CUDA_SUCCESS; }

CUresult cuModuleLoadData(CUmodule *m, const void *image) {
  if (int e = bound("cuModuleLoadData")) return CUresult(e);
  if (int e = unsafe("cuModuleLoadData")) return CUresult(e);
  const std::string ptx(static_cast<const char *>(image));
  auto module = std::make_unique<CUmod_st>();
  module->device = context;
  // Static shared memory is declared before or in the function that uses it.
  static const std::regex entry(R"(\.entry\s+(\w+)\s*\(([^)]*)\))"), parameter(R"(\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+\w+(?:\[(\d+)\])?)"),
      shared(R"(\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d+)\];)");
  std::map<std::string, size_t> variables;
  for (std::sregex_iterator v(ptx.begin(), ptx.end(), shared), end; v != end; ++v) variables[(*v)[1]] = std::stoul((*v)[2]);
  for (std::sregex_iterator f(ptx.begin(), ptx.end(), entry), end; f != end; ++f) {
    auto function = std::make_unique<CUfunc_st>();
    function->name = (*f)[1];
    function->device = context;
    const std::string parameters = (*f)[2];
    for (std::sregex_iterator p(parameters.begin(), parameters.end(), parameter); p != end; ++p) {
      const std::string type = (*p)[1];
      const size_t size = type == "b8" && (*p)[2].matched ? std::stoul((*p)[2]) : std::stoul(type.substr(1)) / 8;
      function->sizes.push_back(size);
      function->wide.push_back(type == "u64" || type == "b64");
    }
    const size_t from = size_t(f->position()) + size_t(f->length()), to = ptx.find(".entry", from);
    const std::string body = ptx.substr(from, to == std::string::npos ? to : to - from);
    function->shared = 0;
    for (const auto &[name, size] : variables)
      if (body.find(name) != std::string::npos) function->shared += size;
    module->functions[function->name] = std::move(function);
  }
  if (module->functions.empty()) return CUresult(fail(CUDA_ERROR_INVALID_PTX, "cuModuleLoadData", "no kernel in the PTX"));
  Lock lock(mutex);
  count(modules, 1);
  all_modules.insert(*m = module.release());
  return CUDA_SUCCESS;
}
CUresult cuModuleLoadDataEx(CUmodule *m, const void *image, unsigned, CUjit_option *, void **) { return cuModuleLoadData(m, image); }
CUresult cuModuleUnload(CUmodule m) {
  if (int e = bound("cuModuleUnload")) return CUresult(e);
  finish_device(m->device);
  Lock lock(mutex);
  if (!all_modules.erase(m)) return CUresult(fail(CUDA_ERROR_INVALID_HANDLE, "cuModuleUnload", "no such module"));
  delete m;
  count(modules, -1);
  return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *name) {
  if (int e = bound("cuModuleGetFunction")) return CUresult(e);
  Lock lock(mutex);
  auto it = m->functions.find(name);
  if (it == m->functions.end()) return CUresult(fail(CUDA_ERROR_NOT_FOUND, "cuModuleGetFunction", std::string("no kernel ") + name));
  return *f = it->second.get(), CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) {
  *v = a == CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES ? int(f->shared) : a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
  if (int e = bound("cuFuncSetAttribute")) return CUresult(e);
  if (a != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
  if (v < 0 || size_t(v) + f->shared > 227 << 10) return CUresult(fail(CUDA_ERROR_INVALID_VALUE, "cuFuncSetAttribute", "more shared memory than there is"));
  f->dynamic = size_t(v);
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream s, void **params, void **) {
  if (int e = bound("cuLaunchKernel")) return CUresult(e);
  if (int e = use_stream("cuLaunchKernel", s)) return CUresult(e);
  auto no = [&](int code, const std::string &why) { return CUresult(fail(code, "cuLaunchKernel", f->name + ": " + why)); };
  Lock lock(mutex);
  const int device = resolve(s)->device;
  if (f->device != context || device != context) return no(CUDA_ERROR_INVALID_HANDLE, "function, stream and context are not of one device");
  if (int e = check_launch("cuLaunchKernel", f->name, x, y, z, bx * by * bz, shared + f->shared, std::max(f->dynamic + f->shared, size_t(48 << 10))))
    return CUresult(e);
  if (shared > f->dynamic || (f->dynamic == 48 << 10 && shared + f->shared > 48 << 10))
    return no(CUDA_ERROR_INVALID_VALUE, std::to_string(shared) + " bytes of dynamic shared memory were not asked for");
  struct Call {
    std::vector<uint64_t> values;
    std::vector<void *> args;
    std::vector<unsigned char> sizes;
  };
  auto call = std::make_shared<Call>();
  call->values.resize(f->sizes.size());
  for (size_t i = 0; i < f->sizes.size(); i++) {
    if (f->sizes[i] > 8) return no(CUDA_ERROR_INVALID_VALUE, "a parameter of more than 8 bytes");
    memcpy(&call->values[i], params[i], f->sizes[i]);
    call->args.push_back(&call->values[i]);
    call->sizes.push_back(static_cast<unsigned char>(f->sizes[i]));
    // Addresses of this process are higher than any number that a kernel takes.
    if (f->wide[i] && call->values[i] >> 40)
      if (check_memory(f->name.c_str(), reinterpret_cast<void *>(call->values[i]), 1, device)) return no(CUDA_ERROR_INVALID_VALUE, "parameter " + std::to_string(i));
  }
  if (verbose()) fprintf(stderr, "pretend: %s<<<(%u,%u,%u),%u,%u>>>\n", f->name.c_str(), x, y, z, bx, shared);
  const std::string name = f->name;
  static const uint64_t order = uint64_t(env("PRETEND_ORDER", 1));
  static const bool idle = env("PRETEND_IDLE", 0);
  return CUresult(enqueue(f->name.c_str(), s, [=] {
    if (idle) return true;
    const unsigned dims[6] = {x, y, z, bx, by, bz};
    const char *why = ssr_emulate(name.c_str(), dims, shared, call->args.data(), call->sizes.data(), int(call->sizes.size()), order);
    if (why) fault(name.c_str(), why);
    return true;
  }));
}
}
