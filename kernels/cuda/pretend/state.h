// The state of the pretended devices, and what the calls of the runtime and of the driver
// have in common. Each function takes the name of the call, for messages, and returns 0 or
// an error; the runtime's and the driver's have the same numbers.
#pragma once
#include "pretend.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

namespace pretend {
struct Capture;
struct Graph {
  std::vector<Work> nodes;
};
} // namespace pretend

struct CUstream_st {
  int device;
  bool blocking, busy = false;
  std::deque<pretend::Work> queue;
  uint64_t queued = 0, done = 0;
  pretend::Capture *capture = nullptr;
};
struct CUevent_st {
  int device;
  bool driver; // made by it, and counted
  CUstream_st *stream = nullptr;
  uint64_t at = 0;
  pretend::Capture *capture = nullptr; // in which it was recorded last
  double when = 0;                     // in milliseconds
};
struct CUgraph_st : pretend::Graph {};
struct CUgraphExec_st : pretend::Graph {};

namespace pretend {

struct Capture {
  CUstream_st *origin;
  pthread_t thread;
  int mode;
  unsigned long long id;
  bool broken = false;
  Graph graph;
};

using Lock = std::lock_guard<std::recursive_mutex>;

// devices.cc: how many there are, what each is, and which a thread has.
int env(const char *name, int otherwise);
int device_count();
size_t device_bytes();
const cudaDeviceProp &properties(int device);
int attribute(int *value, int which, int device);
extern thread_local int device_now; // the runtime's
extern thread_local int context;    // the driver's: the device whose primary context is current, -1 for none
extern thread_local int capture_mode;
extern int sticky; // an error of a kernel, after which nothing works
// bind is what every call of the runtime does that needs a context: it makes the device's
// primary one current for the thread. The driver's calls fail without one.
void bind();
int bound(const char *call);
int check_launch(const char *call, const std::string &name, unsigned x, unsigned y, unsigned z, unsigned threads, size_t shared, size_t most);

// memory.cc
struct Memory {
  size_t bytes;
  int device; // -1: pinned memory of the host
  size_t mapped;
  char *base;
};
const Memory *find(const void *p, uintptr_t *start = nullptr);
size_t taken(int device);
int allocate(const char *call, void **p, size_t bytes, int device);
int release(const char *call, void *p, bool pinned);
int copy(const char *call, void *to, const void *from, size_t n, CUstream_st *handle, bool wait);
int set(const char *call, void *p, int value, size_t n, CUstream_st *handle);

// streams.cc
extern std::set<CUstream_st *> all_streams;
extern std::set<CUevent_st *> all_events;
extern std::set<Capture *> captures;
CUstream_st *legacy(int device);
CUstream_st *resolve(CUstream_st *handle);
void finish_device(int device);
int synchronize_device(const char *call);
int make_stream(CUstream_st **s, bool blocking, bool driver);
int end_stream(const char *call, CUstream_st *s, bool driver);
int query_stream(const char *call, CUstream_st *handle, bool wait);
int make_event(CUevent_st **e, bool driver);
int end_event(const char *call, CUevent_st *e);
int record(const char *call, CUevent_st *e, CUstream_st *handle);
int wait_event(const char *call, CUstream_st *handle, CUevent_st *e);
int query_event(const char *call, CUevent_st *e, bool wait);

} // namespace pretend
