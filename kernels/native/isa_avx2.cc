#include "table.h"
#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma")
#define ISA avx2
#define USE_FMA 1
#define USE_512 0
#include "kernels.h"
#endif
