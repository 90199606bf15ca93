// The libraries that libtorch calls: of cuBLAS only handles, since the CPU computes the
// products; of NCCL what a ring needs, within one process.
#include "pretend.h"

#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <vector>

namespace {

using pretend::fail;
struct Blas {
  int device;
  CUstream_st *stream = nullptr;
  int math = 0, pointer = 0;
};

int product(const char *name, Blas *b) {
  if (int e = pretend::use_stream(name, b->stream)) return e ? 13 : 0;
  if (b->device != pretend::current_device()) return fail(13, name, "the handle is of another device");
  if (!pretend::dry) return fail(15, name, "a product that no operation of libtorch asked for");
  pretend::count(pretend::launches, 1);
  return 0;
}

} // namespace

extern "C" {

int cublasCreate_v2(Blas **b) {
  if (int e = pretend::unsafe("cublasCreate")) return e ? 1 : 0;
  *b = new Blas{pretend::current_device()};
  return 0;
}
int cublasDestroy_v2(Blas *b) { return delete b, 0; }
int cublasSetStream_v2(Blas *b, CUstream_st *s) { return b->stream = s, 0; }
int cublasSetWorkspace_v2(Blas *b, void *p, size_t n) { return pretend::check_memory("cublasSetWorkspace", p, n, b->device) ? 7 : 0; }
int cublasSetMathMode(Blas *b, int m) { return b->math = m, 0; }
int cublasGetMathMode(Blas *b, int *m) { return *m = b->math, 0; }
int cublasSetPointerMode_v2(Blas *b, int m) { return b->pointer = m, 0; }
int cublasGetPointerMode_v2(Blas *b, int *m) { return *m = b->pointer, 0; }
#define X(name) int name(Blas *b) { return product(#name, b); }
X(cublasSgemm_v2) X(cublasDgemm_v2) X(cublasGemmEx) X(cublasSgemmEx) X(cublasSgemmStridedBatched) X(cublasDgemmStridedBatched) X(cublasGemmStridedBatchedEx)
X(cublasSgemv_v2) X(cublasDgemv_v2) X(cublasSdot_v2) X(cublasDdot_v2) X(cublasDotEx)
#undef X

// --- NCCL ---

struct ncclGroup {
  int world, joined = 0;
  bool aborted = false;
  struct Operation {
    int arrived = 0;
    bool done = false;
    std::vector<void *> vectors;
    size_t n = 0;
    int type = 0, owner = 0;
  };
  std::map<uint64_t, Operation> operations;
};
struct ncclComm {
  std::shared_ptr<ncclGroup> group;
  int rank, device;
  uint64_t queued = 0;
};
struct ncclUniqueId {
  char bytes[128];
};

static const char *const nccl_errors[] = {"no error", "unhandled CUDA error", "unhandled system error", "internal error", "invalid argument", "invalid usage"};
const char *ncclGetErrorString(int e) { return e >= 0 && e < 6 ? nccl_errors[e] : "?"; }

int ncclCommInitAll(ncclComm **comms, int n, const int *devices) {
  auto group = std::make_shared<ncclGroup>();
  group->world = group->joined = n;
  for (int i = 0; i < n; i++) comms[i] = new ncclComm{group, i, devices ? devices[i] : i};
  return 0;
}

static std::map<std::string, std::shared_ptr<ncclGroup>> named;
int ncclGetUniqueId(ncclUniqueId *id) {
  static int ids;
  std::lock_guard<std::recursive_mutex> lock(pretend::mutex);
  memset(id, 0, sizeof *id);
  strcpy(id->bytes, ("ring " + std::to_string(ids++)).c_str());
  return 0;
}
int ncclCommInitRank(ncclComm **comm, int world, ncclUniqueId id, int rank) {
  std::shared_ptr<ncclGroup> group;
  {
    std::lock_guard<std::recursive_mutex> lock(pretend::mutex);
    auto &g = named[id.bytes];
    if (!g) g = std::make_shared<ncclGroup>(), g->world = world;
    g->joined++;
    group = g;
  }
  for (;; std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
    std::lock_guard<std::recursive_mutex> lock(pretend::mutex);
    if (group->joined >= world) break;
  }
  *comm = new ncclComm{group, rank, pretend::current_device()};
  return 0;
}

static int collective(const char *call, void *vector, size_t n, int type, int owner, bool sum, ncclComm *c, CUstream_st *stream) {
  if (pretend::use_stream(call, stream)) return 1;
  if (pretend::check_memory(call, vector, n * (type == 8 ? 8 : 4), c->device)) return 4;
  if ((type != 7 && type != 8) || owner < 0 || owner >= c->group->world) return fail(4, call, "an invalid type or rank");
  const uint64_t number = c->queued++;
  auto group = c->group;
  const int rank = c->rank;
  auto arrived = std::make_shared<bool>(false);
  return pretend::enqueue(call, stream, [=] {
    if (group->aborted) return true;
    auto &o = group->operations[number];
    if (!*arrived) {
      *arrived = true;
      if (o.arrived == 0) o.vectors.resize(size_t(group->world)), o.n = n, o.type = type, o.owner = owner;
      if (o.n != n || o.type != type || o.owner != owner) pretend::fault(call, "the ranks disagree");
      o.vectors[size_t(rank)] = vector;
      o.arrived++;
    }
    if (o.arrived < group->world) return false;
    if (!o.done) {
      o.done = true;
      auto add = [&](auto *to) {
        for (int r = 0; r < group->world; r++)
          if (r != owner) {
            auto *other = static_cast<decltype(to)>(o.vectors[size_t(r)]);
            for (size_t i = 0; i < n; i++) sum ? void(to[i] += other[i]) : void(other[i] = to[i]);
          }
      };
      void *to = o.vectors[size_t(owner)];
      type == 8 ? add(static_cast<double *>(to)) : add(static_cast<float *>(to));
    }
    return true;
  }) ? 1 : 0;
}

int ncclReduce(const void *, void *to, size_t n, int type, int op, int owner, ncclComm *c, CUstream_st *s) {
  return op ? fail(4, "ncclReduce", "only sums") : collective("ncclReduce", to, n, type, owner, true, c, s);
}
int ncclBroadcast(const void *, void *to, size_t n, int type, int owner, ncclComm *c, CUstream_st *s) {
  return collective("ncclBroadcast", to, n, type, owner, false, c, s);
}
int ncclCommAbort(ncclComm *c) {
  std::lock_guard<std::recursive_mutex> lock(pretend::mutex);
  c->group->aborted = true;
  return delete c, 0;
}
int ncclCommDestroy(ncclComm *c) { return delete c, 0; }
}
