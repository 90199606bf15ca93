#include "table.h"
#define ISA base
#define USE_FMA 0
#define USE_512 0
#include "kernels.h"
