#include "table.h"
#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#define ISA avx512
#define USE_FMA 1
#define USE_512 1
#include "kernels.h"
#endif
