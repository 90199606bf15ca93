#include "table.h"
#define ISA base
#define USE_FMA 0
#include "kernels.h"
