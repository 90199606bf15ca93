//go:build gpu

#include "nccl.h"

#include <dlfcn.h>
#include <stddef.h>

enum { sum = 0 };

static int (*init_all)(void **, int, const int *);
static int (*reduce)(const void *, void *, size_t, int, int, int, void *, void *);
static int (*broadcast)(const void *, void *, size_t, int, int, void *, void *);
static int (*comm_abort)(void *);
static const char *(*error_string)(int);

static const char *find(void *function, const char *name) {
  return (*(void **)function = dlsym(RTLD_DEFAULT, name)) ? NULL : "this libtorch has no NCCL";
}

static const char *told(int status) { return status ? error_string(status) : NULL; }

const char *ssr_nccl_init(void **comms, int n, const int *devices) {
  const char *why;
  if ((why = find(&init_all, "ncclCommInitAll")) || (why = find(&reduce, "ncclReduce")) || (why = find(&broadcast, "ncclBroadcast")) ||
      (why = find(&comm_abort, "ncclCommAbort")) ||
      (why = find(&error_string, "ncclGetErrorString")))
    return why;
  return told(init_all(comms, n, devices));
}

const char *ssr_nccl_reduce(void *vector, int type, unsigned long n, int owner, void *comm, void *stream) {
  return told(reduce(vector, vector, n, type, sum, owner, comm, stream));
}

const char *ssr_nccl_broadcast(void *vector, int type, unsigned long n, int owner, void *comm, void *stream) {
  return told(broadcast(vector, vector, n, type, owner, comm, stream));
}

void ssr_nccl_abort(void *comm) { comm_abort(comm); }
