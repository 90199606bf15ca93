#pragma once
#ifdef __cplusplus
extern "C" {
#endif

// ssr_cuda_stream makes device the calling thread's, with its context, and returns libtorch's current
// stream on it. *why is NULL, or says what failed and is the caller's to free.
void *ssr_cuda_stream(int device, char **why);

#ifdef __cplusplus
}
#endif
