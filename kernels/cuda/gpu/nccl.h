#pragma once
#ifdef __cplusplus
extern "C" {
#endif

// The few functions of NCCL that reduce needs, looked up in what libtorch brought
// into the process. Each returns NULL or what failed. type is one of NCCL's codes.
enum { ssr_nccl_float32 = 7, ssr_nccl_float64 = 8 };

const char *ssr_nccl_init(void **comms, int n, const int *devices);
const char *ssr_nccl_reduce(void *vector, int type, unsigned long n, int owner, void *comm, void *stream);
const char *ssr_nccl_broadcast(void *vector, int type, unsigned long n, int owner, void *comm, void *stream);
// ssr_nccl_abort ends a communicator and whatever waits in it.
void ssr_nccl_abort(void *comm);

#ifdef __cplusplus
}
#endif
