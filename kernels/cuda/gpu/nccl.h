#pragma once
#ifdef __cplusplus
extern "C" {
#endif

// The few functions of NCCL that reduce needs, looked up in what libtorch brought
// into the process. Each returns NULL or what failed. type is one of NCCL's codes.
enum { ssr_nccl_float32 = 7, ssr_nccl_float64 = 8 };

// ssr_nccl_id is NCCL's ncclUniqueId.
typedef struct { char bytes[128]; } ssr_nccl_id;

const char *ssr_nccl_init(void **comms, int n, const int *devices);
const char *ssr_nccl_new_id(ssr_nccl_id *id);
const char *ssr_nccl_join(void **comm, const ssr_nccl_id *id, int rank, int world);
const char *ssr_nccl_reduce(void *vector, int type, unsigned long n, int owner, void *comm, void *stream);
const char *ssr_nccl_broadcast(void *vector, int type, unsigned long n, int owner, void *comm, void *stream);
// ssr_nccl_abort ends a communicator and whatever waits in it.
void ssr_nccl_abort(void *comm);

#ifdef __cplusplus
}
#endif
