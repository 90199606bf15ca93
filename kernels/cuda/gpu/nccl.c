//go:build gpu

#include "nccl.h"

#include <dlfcn.h>
#include <stddef.h>

enum { sum = 0 };

static int (*init_all)(void **, int, const int *);
static int (*new_id)(ssr_nccl_id *);
static int (*init_rank)(void **, int, ssr_nccl_id, int);
static int (*reduce)(const void *, void *, size_t, int, int, int, void *, void *);
static int (*broadcast)(const void *, void *, size_t, int, int, void *, void *);
static int (*comm_abort)(void *);
static const char *(*error_string)(int);

static const char *find(void *function, const char *name) {
  return (*(void **)function = dlsym(RTLD_DEFAULT, name)) ? NULL : "this libtorch has no NCCL";
}

static const char *told(int status) { return status ? error_string(status) : NULL; }

static const char *find_all(void) {
  const char *why;
  if ((why = find(&init_all, "ncclCommInitAll")) || (why = find(&new_id, "ncclGetUniqueId")) ||
      (why = find(&init_rank, "ncclCommInitRank")) || (why = find(&reduce, "ncclReduce")) || (why = find(&broadcast, "ncclBroadcast")) ||
      (why = find(&comm_abort, "ncclCommAbort")) ||
      (why = find(&error_string, "ncclGetErrorString")))
    return why;
  return NULL;
}

const char *ssr_nccl_init(void **comms, int n, const int *devices) {
  const char *why = find_all();
  return why ? why : told(init_all(comms, n, devices));
}

const char *ssr_nccl_new_id(ssr_nccl_id *id) {
  const char *why = find_all();
  return why ? why : told(new_id(id));
}

const char *ssr_nccl_join(void **comm, const ssr_nccl_id *id, int rank, int world) {
  const char *why = find_all();
  return why ? why : told(init_rank(comm, world, *id, rank));
}

const char *ssr_nccl_reduce(void *vector, int type, unsigned long n, int owner, void *comm, void *stream) {
  return told(reduce(vector, vector, n, type, sum, owner, comm, stream));
}

const char *ssr_nccl_broadcast(void *vector, int type, unsigned long n, int owner, void *comm, void *stream) {
  return told(broadcast(vector, vector, n, type, owner, comm, stream));
}

void ssr_nccl_abort(void *comm) { comm_abort(comm); }
