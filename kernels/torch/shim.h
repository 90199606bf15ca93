// What gotch's libtch does not bind.
#pragma once
#ifdef __cplusplus
extern "C" {
#endif

const char *ssr_torch_version(void);

// ssr_torch_threads sets the threads that one operation uses, libtorch's own
// and OpenBLAS's, for the whole process.
void ssr_torch_threads(int n);

int ssr_torch_get_threads(void);

// ssr_torch_normal draws every element of a tensor (at::Tensor *) from a normal
// distribution, by a generator of its device of that seed. It returns NULL, or an error
// to free.
char *ssr_torch_normal(void *t, double std, unsigned long long seed);

// ssr_torch_lacks names, separated by spaces, what gotch calls and this libtorch
// does not have.
const char *ssr_torch_lacks(void);

#ifdef __cplusplus
}
#endif
