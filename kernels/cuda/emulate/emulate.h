#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

// ssr_emulate runs a kernel over a grid of blocks; dims are grid x, y, z, block x,
// y, z. args are n pointers to parameters of the given sizes. order 0 runs threads
// and blocks in ascending order, 1 in descending order, any other number shuffles
// them by that seed. It returns NULL, or what went wrong, valid until the next call.
const char *ssr_emulate(const char *kernel, const unsigned dims[6], size_t shared, void **args, const unsigned char *sizes, int n,
                        uint64_t order);

// ssr_emulate_name is the i-th kernel's name, NULL past the last.
const char *ssr_emulate_name(int i);

// Memory that ends where a page begins that cannot be touched, filled with 0xff.
void *ssr_emulate_alloc(size_t bytes);
void ssr_emulate_free(void *p, size_t bytes);

#ifdef __cplusplus
}
#endif
