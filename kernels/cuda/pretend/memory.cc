// Memory of the devices, with a page behind each piece that nobody may touch, and copies.
#include "state.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>

namespace pretend {

namespace {
std::map<uintptr_t, Memory> live;
size_t bytes_taken[64];
} // namespace

const Memory *find(const void *p, uintptr_t *start) {
  auto it = live.upper_bound(uintptr_t(p));
  if (it == live.begin()) return nullptr;
  --it;
  if (uintptr_t(p) >= it->first + it->second.bytes) return nullptr;
  if (start) *start = it->first;
  return &it->second;
}

size_t taken(int device) { return bytes_taken[device]; }

int allocate(const char *call, void **p, size_t bytes, int device) {
  if (int e = unsafe(call)) return e;
  Lock lock(mutex);
  if (bytes == 0) return *p = nullptr, 0;
  if (device >= 0 && bytes_taken[device] + bytes > device_bytes()) {
    if (verbose()) fprintf(stderr, "pretend: %s: out of memory for %zu bytes\n", call, bytes);
    return cudaErrorMemoryAllocation;
  }
  const size_t page = 4096, room = (bytes + 511) / 512 * 512, whole = (room + page - 1) / page * page;
  char *base = static_cast<char *>(mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (base == MAP_FAILED) return cudaErrorMemoryAllocation;
  mprotect(base + whole, page, PROT_NONE);
  char *at = base + whole - room;
  if (device >= 0 && bytes <= 4 << 20) memset(at, 0xff, bytes);
  live[uintptr_t(at)] = Memory{bytes, device, whole + page, base};
  if (device >= 0) bytes_taken[device] += bytes;
  *p = at;
  return 0;
}

int release(const char *call, void *p, bool pinned) {
  if (!p) return 0;
  if (int e = unsafe(call)) return e;
  int device;
  {
    Lock lock(mutex);
    auto it = live.find(uintptr_t(p));
    if (it == live.end() || (it->second.device < 0) != pinned) return fail(cudaErrorInvalidValue, call, "this is not the beginning of live memory");
    device = it->second.device;
  }
  for (int d = 0; d < device_count(); d++)
    if (device < 0 || d == device) finish_device(d);
  Lock lock(mutex);
  auto it = live.find(uintptr_t(p));
  if (it == live.end()) return fail(cudaErrorInvalidValue, call, "freed twice");
  if (device >= 0) bytes_taken[device] -= it->second.bytes;
  munmap(it->second.base, it->second.mapped);
  live.erase(it);
  return 0;
}

// device -2 allows the host's pinned memory too.
int check_memory(const char *call, const void *p, size_t bytes, int device) {
  Lock lock(mutex);
  if (bytes == 0) return 0;
  uintptr_t start = 0;
  const Memory *m = find(p, &start);
  char what[64];
  snprintf(what, sizeof what, "%p, %zu bytes, ", p, bytes);
  if (!m) return fail(cudaErrorInvalidValue, call, what + std::string("is no live memory"));
  if (uintptr_t(p) + bytes > start + m->bytes) return fail(cudaErrorInvalidValue, call, what + std::string("goes past the end"));
  if (device >= 0 && m->device != device)
    return fail(cudaErrorInvalidValue, call, what + ("is of device " + std::to_string(m->device) + ", not " + std::to_string(device)));
  return 0;
}

int copy(const char *call, void *to, const void *from, size_t n, CUstream_st *handle, bool wait) {
  if (int e = use_stream(call, handle)) return e;
  if (n == 0) return 0;
  std::unique_lock<std::recursive_mutex> lock(mutex);
  const Memory *dst = find(to), *src = find(from);
  if (!to || !from) return fail(cudaErrorInvalidValue, call, "NULL");
  if (dst)
    if (int e = check_memory(call, to, n, -2)) return e;
  if (src)
    if (int e = check_memory(call, from, n, -2)) return e;
  if (wait || !dst || !src)
    if (capturing(handle)) return enqueue(call, handle, nullptr), fail(cudaErrorStreamCaptureUnsupported, call, "pageable memory, or waiting, in a capture");
  if (wait)
    if (int e = unsafe(call)) return e;
  Work work;
  if (!src) {
    auto bytes = std::make_shared<std::vector<char>>(static_cast<const char *>(from), static_cast<const char *>(from) + n);
    work = [to, bytes, n] { return memcpy(to, bytes->data(), n), true; };
  } else {
    work = [to, from, n] { return memmove(to, from, n), true; };
  }
  if (dry && dst && src && dst->device >= 0 && src->device >= 0) return 0; // the CPU computes the result
  if (int e = enqueue(call, handle, work)) return e;
  lock.unlock();
  if (wait || !dst) finish(handle);
  return sticky;
}

int set(const char *call, void *p, int value, size_t n, CUstream_st *handle) {
  if (int e = use_stream(call, handle)) return e;
  if (int e = check_memory(call, p, n, -2)) return e;
  if (dry) return 0;
  return enqueue(call, handle, [=] { return memset(p, value, n), true; });
}

} // namespace pretend
