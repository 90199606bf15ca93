// What libtorch's allocator has taken of a GPU. Returns NULL, or an error to free.
#pragma once
#ifdef __cplusplus
extern "C" {
#endif

// ssr_cuda_peak is the most bytes that live tensors had at a time since the peak was
// reset, and resets it.
char *ssr_cuda_peak(int device, long long *bytes);

#ifdef __cplusplus
}
#endif
