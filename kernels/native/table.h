// What every instruction set fills in, and the headers its kernels need
// (included before any target pragma, so that library code stays portable).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "api.h"

#define SSR_POINTER(R, name, F, params, args) R(*name##_##F) params;
struct Table {
  SSR_KERNELS(float, SSR_POINTER)
  SSR_KERNELS(double, SSR_POINTER)
  int32_t (*sample)(const float *, long, double, long, double, double, double, float *, float *);
};
